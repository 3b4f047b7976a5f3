//! Enforcement: a table and a request in, a verdict out.
