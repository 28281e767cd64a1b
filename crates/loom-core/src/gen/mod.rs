//! What is generated from `spec/` by tools/gen.py: codes and limits.

pub mod codes;
pub mod limits;
