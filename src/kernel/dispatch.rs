//! Which kernel runs: the best that this CPU has, unless the environment or the caller says otherwise.

use super::arithmetic::Mode;
use super::ops::Ops;
use super::scalar;
use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Environment variable that names the kernel to use.
pub const ENV: &str = "LITTLEBIT_KERNEL";

/// An implementation of the products. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Kernel {
    /// Portable code.
    Scalar = 1,
    /// x86-64 with AVX2 and F16C.
    Avx2 = 2,
    /// x86-64 with AVX-512 F, BW, VL, VBMI and VNNI: Ice Lake, Zen 4 and later.
    Avx512 = 3,
    /// aarch64, little-endian.
    Neon = 4,
    /// x86-64 with AMX tiles of bytes beside all of [`Kernel::Avx512`], on Linux: Sapphire Rapids and later.
    Amx = 5,
}

/// Slowest first.
const ALL: [Kernel; 5] = [Kernel::Scalar, Kernel::Avx2, Kernel::Avx512, Kernel::Amx, Kernel::Neon];

impl Kernel {
    /// The name that [`ENV`], the command line and the C ABI use.
    pub const fn name(self) -> &'static str {
        match self {
            Kernel::Scalar => "scalar",
            Kernel::Avx2 => "avx2",
            Kernel::Avx512 => "avx512",
            Kernel::Neon => "neon",
            Kernel::Amx => "amx",
        }
    }

    /// Whether this CPU can run it and this build contains it.
    pub fn is_available(self) -> bool {
        match self {
            Kernel::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => {
                Kernel::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Kernel::Amx => super::amx::is_available(),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Kernel::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// `self`, or an error that lists what is available instead.
    pub(super) fn checked(self) -> Result<Self> {
        if self.is_available() {
            return Ok(self);
        }
        Err(Error::usage(format!(
            "kernel '{self}' does not run on this machine (available: {})",
            names(&available())
        )))
    }

    /// The primitives for a batch of so many vectors of activations. Only call them if [`Self::is_available`].
    pub(super) fn ops(self, mode: Mode, vectors: usize) -> &'static Ops {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Kernel::Amx if mode == Mode::Int && vectors >= super::amx::FROM => &super::amx::OPS,
            #[cfg(target_arch = "x86_64")]
            Kernel::Amx => &super::avx512::OPS,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => &super::avx2::OPS,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => &super::avx512::OPS,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Kernel::Neon => &super::neon::OPS,
            _ => &scalar::OPS,
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kernel {
    type Err = Error;
    /// Parses a name; [`Error::Usage`] lists the known ones. Says nothing about availability.
    fn from_str(name: &str) -> Result<Self> {
        let known = ALL.into_iter().find(|k| k.name() == name);
        known.ok_or_else(|| Error::usage(format!("unknown kernel '{name}' (known: {})", names(&ALL))))
    }
}

fn names(kernels: &[Kernel]) -> String {
    kernels.iter().map(|k| k.name()).collect::<Vec<_>>().join(", ")
}

/// The kernels that run here, slowest first. Never empty.
pub fn available() -> Vec<Kernel> {
    ALL.into_iter().filter(|k| k.is_available()).collect()
}

fn best() -> Kernel {
    ALL.into_iter().rev().find(|k| k.is_available()).unwrap_or(Kernel::Scalar)
}

/// The kernel that [`ENV`] names, or the best one where it is unset or empty.
/// Errors: [`Error::Usage`] for an unknown name or a kernel that does not run here.
pub fn from_env() -> Result<Kernel> {
    let Some(value) = std::env::var_os(ENV).filter(|v| !v.is_empty()) else {
        return Ok(best());
    };
    let named = value.to_string_lossy().parse().and_then(Kernel::checked);
    named.map_err(|e: Error| Error::usage(format!("environment variable {ENV}: {e}")))
}

/// 0, or the number of the kernel given to [`force`].
static FORCED: AtomicU8 = AtomicU8::new(0);
static DEFAULT: OnceLock<Kernel> = OnceLock::new();

/// The kernel in force: the one given to [`force`], else [`from_env`] as it was at the first call. A bad
/// environment value is reported once on stderr and the best kernel used; call [`from_env`] first to refuse it.
pub fn active() -> Kernel {
    let forced = FORCED.load(Ordering::Relaxed);
    if let Some(kernel) = ALL.into_iter().find(|k| *k as u8 == forced) {
        return kernel;
    }
    *DEFAULT.get_or_init(|| {
        from_env().unwrap_or_else(|e| {
            eprintln!("littlebit: {e}; using '{}'", best());
            best()
        })
    })
}

/// Makes `kernel` the active one for the whole process, or with `None` lifts that again.
/// Errors: [`Error::Usage`] if it does not run here; then nothing changes.
pub fn force(kernel: Option<Kernel>) -> Result<()> {
    let number = match kernel {
        Some(kernel) => kernel.checked()? as u8,
        None => 0,
    };
    FORCED.store(number, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_refused() {
        for kernel in ALL {
            assert_eq!(kernel.to_string().parse::<Kernel>().unwrap(), kernel);
        }
        let e = "sse9".parse::<Kernel>().unwrap_err().to_string();
        assert_eq!(e, "unknown kernel 'sse9' (known: scalar, avx2, avx512, amx, neon)");
    }

    #[test]
    fn scalar_runs_everywhere_and_the_best_is_the_last() {
        assert_eq!(available()[0], Kernel::Scalar);
        assert_eq!(available().last(), Some(&best()));
    }
}
