//! The fuzz targets' share of [`properties`], which the product's tests have too.
#![forbid(unsafe_code)]

pub mod properties;
