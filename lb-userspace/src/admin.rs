//! The Unix socket that the command line talks to.
