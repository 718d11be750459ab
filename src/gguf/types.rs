//! Tensor types of ggml: ids as files carry them, block geometry, names.

use std::fmt;

/// A tensor type by its id on disk. Ids that this table does not know are representable, but have no geometry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GgmlType(pub u32);

macro_rules! types {
    ($($konst:ident = $id:literal, $name:literal, $elements:literal, $bytes:literal;)*) => {
        #[allow(missing_docs)] // the names are ggml's
        impl GgmlType {
            $(pub const $konst: GgmlType = GgmlType($id);)*

            /// All types of the table.
            pub const ALL: &[GgmlType] = &[$(GgmlType($id)),*];

            /// Elements and bytes of one block; `None` for an id that is not in the table.
            pub const fn block(self) -> Option<(u64, u64)> {
                match self.0 {
                    $($id => Some(($elements, $bytes)),)*
                    _ => None,
                }
            }

            const fn known_name(self) -> Option<&'static str> {
                match self.0 {
                    $($id => Some($name),)*
                    _ => None,
                }
            }
        }
    };
}

types! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2_K = 10, "Q2_K", 256, 84;
    Q3_K = 11, "Q3_K", 256, 110;
    Q4_K = 12, "Q4_K", 256, 144;
    Q5_K = 13, "Q5_K", 256, 176;
    Q6_K = 14, "Q6_K", 256, 210;
    Q8_K = 15, "Q8_K", 256, 292;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, "IQ3_S", 256, 110;
    IQ2_S = 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    IQ1_M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    TQ1_0 = 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, "TQ2_0", 256, 66;
    MXFP4 = 39, "MXFP4", 32, 17;
    NVFP4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
    Q2_0 = 42, "Q2_0", 64, 18;
}

impl GgmlType {
    /// ggml's name, or `type N` for an unknown id.
    pub fn name(self) -> impl fmt::Display {
        self
    }

    /// The type called `name`, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.known_name().is_some_and(|n| n.eq_ignore_ascii_case(name)))
    }

    /// Bytes of a row of `ne0` elements; `None` for an unknown type, a row that does not fill whole blocks, or overflow.
    pub fn row_bytes(self, ne0: u64) -> Option<u64> {
        let (elements, bytes) = self.block()?;
        ne0.is_multiple_of(elements).then(|| (ne0 / elements).checked_mul(bytes))?
    }

    /// Bytes of a tensor of shape `dims` (ne, fastest first); `None` as for [`GgmlType::row_bytes`].
    pub fn tensor_bytes(self, dims: &[u64]) -> Option<u64> {
        let row = self.row_bytes(*dims.first()?)?;
        dims[1..].iter().try_fold(row, |n, d| n.checked_mul(*d))
    }

    /// Whether [`super::dequantize`] knows the type.
    pub fn can_dequantize(self) -> bool {
        super::dequant::supported(self)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known_name() {
            Some(name) => f.pad(name),
            None => write!(f, "type {}", self.0),
        }
    }
}
