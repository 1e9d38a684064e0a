//! Whole systems in network namespaces.
