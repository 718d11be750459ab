//! The C ABI as C, C++ and Rust see it. Needs `cc` and `c++`, and no default features.

mod abuse;
mod fixture;
mod header;
mod products;
mod programs;
