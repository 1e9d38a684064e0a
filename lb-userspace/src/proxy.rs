//! The proxy: HTTP requests that are retried.

pub mod decide;
