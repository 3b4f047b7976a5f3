//! How a table leaves the controller: a file, an HTTP endpoint, and the journal that makes both
//! survive a restart. Nothing here decides, and nothing is announced before it is on disk.

pub mod board;
pub mod file;
pub mod http;
pub mod inbox;
pub mod journal;
pub mod lock;
mod patience;
mod peer;
pub mod server;
pub mod tls;
pub mod token;
