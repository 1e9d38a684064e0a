//! The timeline: what happened, when and why.
