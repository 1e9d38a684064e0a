//! The allocator of the binary.
//!
//! The proxy asks for memory many times for each request, in sizes that come again: with glibc's
//! allocator a request costs more CPU time. Of mimalloc's functions it matters which is called: those that take
//! an alignment find room for a larger piece and align in it, unless a block of just this size happens to be
//! free, and what lies within a block is dearer to free. So they are called only where the alignment is
//! more than any C type's (`docs/decisions/0023-proxy-speed.md`).

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys::{
    mi_free, mi_malloc, mi_malloc_aligned, mi_realloc, mi_realloc_aligned, mi_zalloc,
    mi_zalloc_aligned,
};

/// What `malloc` must align to, where the size is no less (C11, section 7.22.3): `max_align_t`.
const NATURAL_ALIGN: usize = 16;

/// mimalloc.
pub(crate) struct Allocator;

/// Whether every block of this size is aligned enough.
const fn is_natural(size: usize, align: usize) -> bool {
    align <= NATURAL_ALIGN && align <= size
}

// SAFETY: what these functions of mimalloc give is as large as it was asked for, and aligned: by the
// alignment that they are told, or as C's `malloc` where that is enough. They give null, and do not
// unwind, if there is no memory. Any of them may be freed or made larger by any other.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: both take any size, and the alignment is a power of two.
        unsafe {
            if is_natural(size, align) { mi_malloc(size) } else { mi_malloc_aligned(size, align) }
        }
        .cast()
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: as above.
        unsafe {
            if is_natural(size, align) { mi_zalloc(size) } else { mi_zalloc_aligned(size, align) }
        }
        .cast()
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, _layout: Layout) {
        // SAFETY: the caller has it from here, and has not freed it.
        unsafe { mi_free(pointer.cast()) };
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (pointer, align) = (pointer.cast(), layout.align());
        // SAFETY: the caller has it from here, and has not freed it; the rest is as above.
        unsafe {
            if is_natural(size, align) {
                mi_realloc(pointer, size)
            } else {
                mi_realloc_aligned(pointer, size, align)
            }
        }
        .cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_keeps_its_content() {
        for align in [1, 2, 4, 8, 16, 32, 128, 4096] {
            for size in (1..200).chain([1000, 1025, 8192, 70_000]) {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the size is not zero; each piece is used within it and freed once.
                unsafe {
                    let zeroed = Allocator.alloc_zeroed(layout);
                    assert!(zeroed.addr().is_multiple_of(align), "{layout:?}");
                    assert_eq!(zeroed.add(size - 1).read(), 0);
                    let first = Allocator.alloc(layout);
                    assert!(first.addr().is_multiple_of(align), "{layout:?}");
                    first.write(7);
                    let larger = Allocator.realloc(first, layout, size * 3);
                    assert!(larger.addr().is_multiple_of(align), "{layout:?}");
                    assert_eq!(larger.read(), 7);
                    larger.add(size * 3 - 1).write(8);
                    Allocator.dealloc(zeroed, layout);
                    Allocator.dealloc(larger, Layout::from_size_align(size * 3, align).unwrap());
                }
            }
        }
    }
}
