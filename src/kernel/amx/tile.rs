//! The tile instructions, as assembly: Rust has no stable names for them.
//!
//! Tile registers are a thread's own, and so is their configuration, which other code in the same thread may rely on
//! (ggml's own products do). [`Tiles`] leaves it as it was.

use super::super::scratch::Line;
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

/// Rows of a tile, and columns of a tile of sums.
pub(super) const ROWS: usize = 16;
/// Columns of bytes that an instruction multiplies and adds up.
pub(super) const COLS: usize = 64;

/// Lines of the expanded signs of 32 rows and [`COLS`] columns: two tiles.
pub(super) const STEP_LINES: usize = 2 * ROWS;

/// Sums of up to 16 rows of activations and the 32 rows of a row block.
pub(super) type Sums = [[i32; 32]; ROWS];

/// Whether the processor has tiles of bytes, and the system saves them.
pub(super) fn exist() -> bool {
    const TILE_AND_INT8: u32 = 3 << 24;
    const CONFIG_AND_DATA: u64 = 3 << 17;
    let osxsave = (__cpuid(1).ecx >> 27) & 1 == 1;
    if !osxsave || __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & TILE_AND_INT8 != TILE_AND_INT8 {
        return false;
    }
    // SAFETY: with OSXSAVE the processor has the instruction and register 0.
    unsafe { _xgetbv(0) & CONFIG_AND_DATA == CONFIG_AND_DATA }
}

/// Asks Linux to let this process use tiles, which it does not by itself since their state is large.
pub(super) fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let mut answer = ARCH_PRCTL;
    // SAFETY: a system call that touches no memory of this process; these are the registers that it changes.
    unsafe {
        asm!(
            "syscall",
            inout("rax") answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

/// What `ldtilecfg` reads and `sttilecfg` writes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row.
    colsb: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Config>() == 64);

impl Config {
    const NONE: Config =
        Config { palette: 0, start_row: 0, reserved: [0; 14], colsb: [0; 16], rows: [0; 16] };

    /// Registers 0 to 5, sums and activations, have `rows` rows, 6 and 7, signs, all 16.
    fn of(rows: usize) -> Config {
        let mut config = Config { palette: 1, ..Config::NONE };
        for i in 0..8 {
            config.colsb[i] = COLS as u16;
            config.rows[i] = if i < 6 { rows as u8 } else { ROWS as u8 };
        }
        config
    }
}

/// This thread's tiles, configured for tiles of activations of some number of rows. Dropped, they are what they were.
pub(super) struct Tiles {
    before: Config,
    /// Not to be sent to another thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Tiles {
    /// # Safety
    /// The AMX kernel is available; `rows` is 1 to 16.
    pub unsafe fn configure(rows: usize) -> Self {
        debug_assert!((1..=ROWS).contains(&rows));
        let mut before = Config::NONE;
        let config = Config::of(rows);
        // SAFETY: both are 64 bytes; the configuration is one of palette 1.
        unsafe {
            asm!("sttilecfg [{}]", in(reg) &mut before, options(nostack, preserves_flags));
            asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags, readonly));
        }
        Tiles { before, _thread: std::marker::PhantomData }
    }

    /// Adds to `N` tiles of sums the products of `N` rows of tiles of activations with those of 32 rows of expanded
    /// signs, all of as many columns; `first` instead of adding overwrites.
    ///
    /// # Panics
    /// If `signs` is empty, or there are fewer tiles of activations.
    #[inline]
    pub fn multiply<const N: usize>(
        &self,
        activations: [&[Line]; N],
        signs: &[[Line; STEP_LINES]],
        first: bool,
        sums: &mut [Sums; N],
    ) {
        const { assert!(N == 1 || N == 2) };
        let steps = signs.len();
        assert!(steps > 0 && activations.iter().all(|a| a.len() >= steps * ROWS));
        // SAFETY: signs and activations are there for so many steps, sums are N arrays one after the other. Nothing is
        // expected of tile registers before the block nor after it.
        unsafe {
            asm!(
                "test {first}, {first}",
                "jz 3f",
                "tilezero tmm0",
                "tilezero tmm1",
                ".if {pair}",
                "tilezero tmm2",
                "tilezero tmm3",
                ".endif",
                "jmp 2f",
                "3:",
                "tileloadd tmm0, [{sums} + {row}*1]",
                "tileloadd tmm1, [{sums} + {row}*1 + 64]",
                ".if {pair}",
                "tileloadd tmm2, [{sums} + {row}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {row}*1 + 2112]",
                ".endif",
                "2:",
                "tileloadd tmm6, [{signs} + {line}*1]",
                "tileloadd tmm7, [{signs} + {line}*1 + 1024]",
                "tileloadd tmm4, [{a} + {line}*1]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                ".if {pair}",
                "tileloadd tmm5, [{b} + {line}*1]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "add {b}, 1024",
                ".endif",
                "add {signs}, 2048",
                "add {a}, 1024",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {row}*1], tmm0",
                "tilestored [{sums} + {row}*1 + 64], tmm1",
                ".if {pair}",
                "tilestored [{sums} + {row}*1 + 2048], tmm2",
                "tilestored [{sums} + {row}*1 + 2112], tmm3",
                ".endif",
                pair = const (N == 2) as usize,
                first = in(reg) usize::from(first),
                sums = in(reg) sums.as_mut_ptr(),
                row = in(reg) size_of::<[i32; 32]>(),
                signs = inout(reg) signs.as_ptr() => _,
                line = in(reg) size_of::<Line>(),
                a = inout(reg) activations[0].as_ptr() => _,
                b = inout(reg) activations[N - 1].as_ptr() => _,
                steps = inout(reg) steps => _,
                out("tmm0") _,
                out("tmm1") _,
                out("tmm2") _,
                out("tmm3") _,
                out("tmm4") _,
                out("tmm5") _,
                out("tmm6") _,
                out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: what `sttilecfg` wrote; no palette means that there were no tiles.
        unsafe {
            if self.before.palette == 0 {
                asm!("tilerelease", options(nostack, preserves_flags, nomem));
            } else {
                asm!("ldtilecfg [{}]", in(reg) &self.before, options(nostack, preserves_flags, readonly));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    fn now() -> ([u16; 8], [u8; 8], u8) {
        let mut config = Config::NONE;
        // SAFETY: 64 bytes.
        unsafe { asm!("sttilecfg [{}]", in(reg) &mut config, options(nostack, preserves_flags)) };
        (
            config.colsb.first_chunk().copied().unwrap(),
            config.rows.first_chunk().copied().unwrap(),
            config.palette,
        )
    }

    #[test]
    fn the_configuration_of_the_thread_is_left_as_it_was() {
        if !Kernel::Amx.is_available() {
            return;
        }
        // SAFETY: the kernel is available.
        let configure = |rows| unsafe { Tiles::configure(rows) };
        assert_eq!(now(), ([0; 8], [0; 8], 0));
        let outer = configure(3);
        let before = now();
        assert_eq!(before, ([64; 8], [3, 3, 3, 3, 3, 3, 16, 16], 1));
        let inner = configure(16);
        assert_eq!(now(), ([64; 8], [16; 8], 1));
        drop(inner);
        assert_eq!(now(), before);
        drop(outer);
        assert_eq!(now(), ([0; 8], [0; 8], 0));
    }
}
