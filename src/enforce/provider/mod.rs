//! Providers of a model: what their answers teach, and which of them may be asked now.
//!
//! [`learn()`] reads one answer, [`Providers`] remembers, a pace holds back where a provider states
//! nothing, [`Closed`] says what a client hears when nobody may be asked; all of it is pure.
//! `forward.rs` sends, `fallback.rs` goes from one to the next.

mod attempt;
mod closed;
mod error;
mod fields;
mod learn;
mod pace;
mod reset;
mod state;

pub use attempt::Attempt;
pub use closed::Closed;
pub use fields::is_quota;
pub use learn::{Answer, Class, Lesson, learn, refuses};
pub use state::{Providers, Readiness};
