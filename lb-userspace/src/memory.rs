//! The daemon's own memory.

/// A file of this size leaves so much free memory behind, once it has been read, that it is worth
/// giving back.
pub(crate) const LARGE_FILE: usize = 1 << 20;

/// Gives free memory back to the kernel. A large file is read into a tree that is thirty times its
/// size; the allocator would keep that, once for each thread that a file was read by.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes any number, and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
