//! A conversion run: from an open source to a finished file.
//!
//! [`convert`] walks the source's tensors in file order, factorizes what the plan names on all threads and
//! streams the result through an [`output::AtomicFile`]. [`ordered`] keeps the order (and so the bytes)
//! independent of the number of threads.

mod block_tuning;
pub mod convert;
mod effort;
mod evaluation;
mod fingerprint;
mod generated;
mod header;
pub mod journal;
pub mod layout;
mod limits;
pub mod memory;
pub mod ordered;
pub mod output;
mod pool;
pub mod repack;
pub mod report;
pub mod search;
mod sequential;
mod site;
mod space;
mod stages;
mod statistics;
mod stored;
mod tensor;
mod trained;
pub mod tuned;
pub mod verification;

pub use convert::{Options, convert};
pub(crate) use header::file_name;
pub use report::{Event, Report};
