//! How a product says no: which of the known dialects its clients speak.

use serde::{Deserialize, Serialize};

/// By name; `openai` unless stated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dialect {
    pub preset: Option<String>,
}

// === impl Dialect ===

impl Dialect {
    pub(super) fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}
