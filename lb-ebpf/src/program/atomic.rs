//! Atomic operations of BPF (`BPF_ATOMIC | BPF_FETCH`, Linux 5.12) on 64-bit words.
//!
//! Rust's own are missing on this target, which it takes to have no compare-and-swap.

use core::arch::asm;

/// Adds to a word and returns what it was.
///
/// # Safety
///
/// `word` is valid, aligned to 8, and lies in a map's value.
#[inline(always)]
pub(crate) unsafe fn fetch_add(word: *mut u64, number: u64) -> u64 {
    let mut value = number;
    // SAFETY: the caller's word; the instruction touches nothing else.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
            options(nostack),
        );
    }
    value
}

/// Sets bits of a word and returns what it was.
///
/// # Safety
///
/// As [`fetch_add`].
#[inline(always)]
pub(crate) unsafe fn fetch_or(word: *mut u64, bits: u64) -> u64 {
    let mut value = bits;
    // SAFETY: the caller's word; the instruction touches nothing else.
    unsafe {
        asm!(
            "{value} = atomic_fetch_or((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
            options(nostack),
        );
    }
    value
}

/// The same reference, of which the compiler does not know that it is.
#[inline(always)]
pub(crate) fn afresh<T>(element: &T) -> &T {
    let from: *const T = element;
    let to: *const T;
    // SAFETY: the address is what it was, and so is all that makes it valid. (Without any instruction, the
    // debug information has two lines for the next one, and the kernel refuses it.)
    unsafe {
        asm!("{to} = {from}", from = in(reg) from, to = lateout(reg) to, options(nomem, nostack));
        &*to
    }
}

/// The same number, of which the compiler does not know that it is.
#[inline(always)]
pub(crate) fn apart(from: u64) -> u64 {
    let to: u64;
    // SAFETY: a copy from one register to another.
    unsafe {
        asm!("{to} = {from}", from = in(reg) from, to = lateout(reg) to, options(nomem, nostack));
    }
    to
}
