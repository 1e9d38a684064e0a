//! SYN cookies, which the kernel makes.

use aya_ebpf::{
    Global,
    helpers::{bpf_sk_lookup_tcp, bpf_sk_release, bpf_tcp_gen_syncookie},
};
use lb_ebpf::{
    cookie::{Cookie, Question},
    family::{Family, Tuple},
    packet::Packet,
};

use super::tables::OWN_NETNS;

/// Set by the loader, see [`lb_common::names::OWN_SCALE`].
#[unsafe(no_mangle)]
static OWN_SCALE: Global<u32> = Global::new(0);

/// How the node's own stack scales windows.
#[inline(always)]
pub(super) fn own_scale() -> Option<u8> {
    match OWN_SCALE.load() {
        0 => None,
        more => Some((more - 1) as u8),
    }
}

/// The kernel's cookie for a SYN. By the SYN's own tuple: of the sockets that listen in one place, each has a
/// queue of its own, and the kernel chooses one by the tuple.
#[inline(always)]
pub(super) fn ask<F: Family>(
    packet: &Packet,
    tuple: &Tuple<F::Address>,
    question: &Question<F>,
) -> Option<Cookie> {
    /// Without what alignment adds.
    const PORTS: usize = size_of::<u32>();
    // Laid out as `struct bpf_sock_tuple` is.
    let mut ends = *tuple;
    let length = 2 * size_of::<F::Address>() + PORTS;
    // SAFETY: all of it lies on the stack, and is as long as is said; the socket is given back at once.
    let answer = unsafe {
        let context = packet.context as *mut core::ffi::c_void;
        let ends = (&raw mut ends).cast();
        let socket = bpf_sk_lookup_tcp(context, ends, length as u32, OWN_NETNS, 0);
        if socket.is_null() {
            return None;
        }
        let ip = (&raw const question.ip).cast_mut().cast();
        let tcp = (&raw const question.tcp).cast_mut().cast();
        let (ip_len, tcp_len) = (size_of::<F::Hdr>(), Question::<F>::TCP_LEN);
        let answer = bpf_tcp_gen_syncookie(socket.cast(), ip, ip_len as u32, tcp, tcp_len as u32);
        bpf_sk_release(socket.cast());
        answer
    };
    // A negative number says why there is none.
    (answer >= 0).then_some(Cookie { seq: answer as u32, mss: (answer >> 32) as u16 })
}
