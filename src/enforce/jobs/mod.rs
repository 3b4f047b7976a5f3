//! Jobs that outlive the request which made them: each holds a slot until its end is seen.
//!
//! The limiter counts the slots; the table knows which job holds which. [`Desk`] is the shell around it.

mod desk;
mod draft;
mod hook;
mod kept;
mod sight;
mod table;
mod token;
mod watch;

pub use desk::Desk;
pub use draft::Draft;
pub use hook::{HOOKS, Hook, HookFile};
pub use sight::{Sight, Told};
pub use table::{Nonce, Owner};
pub use watch::Watch;
