//! Providers of a model: what their answers teach, and which of them may be asked now.
//!
//! [`learn`] reads one answer, [`Providers`] remembers; both are pure. `forward.rs` sends.

mod error;
mod fields;
pub mod learn;
mod reset;
mod state;

pub use learn::{Answer, Class, Lesson};
pub use state::{Providers, Readiness};
