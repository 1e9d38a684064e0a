//! Batch operations of bpf(2), which aya does not offer: one system call for thousands of entries.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::Pod;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

/// Entries asked for in one call. A hash table's bucket must fit; buckets hold a handful.
const CHUNK: usize = 4096;

/// The `batch` member of `union bpf_attr` (`linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the attributes are those of the command, and point to memory that the callers below
    // keep alive and large enough during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Calls `visit` with every entry of a hash map. Entries that come and go meanwhile may be missed or
/// seen twice.
pub(super) fn for_each<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let mut cursor = None;
    loop {
        cursor = chunk(map, cursor, CHUNK, &mut visit)?;
        if cursor.is_none() {
            return Ok(());
        }
    }
}

/// Calls `visit` with up to `most` entries of a hash map, from where an earlier call has stopped. Answers
/// with where to go on, or `None` at the end.
pub(super) fn chunk<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<u32>,
    most: usize,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<Option<u32>> {
    let mut keys: Vec<K> = Vec::with_capacity(most);
    let mut values: Vec<V> = Vec::with_capacity(most);
    let mut next: u32 = 0;
    let mut attributes = Attributes {
        in_batch: from.as_ref().map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: most as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Attributes::default()
    };
    let ended = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    let count = (attributes.count as usize).min(most);
    // SAFETY: the kernel has written `count` keys and values, at most the capacity; all bit patterns
    // are valid (`Pod`).
    unsafe {
        keys.set_len(count);
        values.set_len(count);
    }
    for (key, value) in keys.iter().zip(&values) {
        visit(key, value);
    }
    Ok((!ended).then_some(next))
}

/// Calls `visit` with the index and the values of each CPU of `count` entries of a per-CPU array, from
/// `start` up (Linux 5.13). Those past the array's end are left out.
pub(super) fn read_per_cpu<V: Pod>(
    map: BorrowedFd<'_>,
    start: u32,
    count: u32,
    cpus: usize,
    mut visit: impl FnMut(u32, &[V]),
) -> io::Result<()> {
    const {
        // The kernel rounds the value of each CPU up to a multiple of 8 bytes.
        assert!(size_of::<V>().is_multiple_of(8));
    }
    let chunk = count.min(CHUNK as u32);
    let mut keys: Vec<u32> = Vec::with_capacity(chunk as usize);
    let mut values: Vec<V> = Vec::with_capacity(chunk as usize * cpus);
    let mut done = 0;
    while done < count {
        // The kernel goes on after the index that it is given.
        let before = (start + done).wrapping_sub(1);
        let mut next: u32 = 0;
        let mut attributes = Attributes {
            in_batch: if start + done == 0 { 0 } else { &raw const before as u64 },
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: chunk.min(count - done),
            map_fd: map.as_raw_fd() as u32,
            ..Attributes::default()
        };
        let last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let read = attributes.count.min(chunk);
        // SAFETY: the kernel has written `read` keys, at most the capacity, and as many values of all
        // CPUs, each of the size of `V`; all bit patterns are valid (`Pod`).
        unsafe {
            keys.set_len(read as usize);
            values.set_len(read as usize * cpus);
        }
        for (key, values) in keys.iter().zip(values.chunks_exact(cpus)) {
            visit(*key, values);
        }
        if last || read == 0 {
            return Ok(());
        }
        done += read;
    }
    Ok(())
}

/// Writes values to consecutive indexes of an array map, from `start` up.
pub(super) fn update_array<V: Pod>(
    map: BorrowedFd<'_>,
    start: u32,
    values: &[V],
) -> io::Result<()> {
    let mut keys: Vec<u32> = (start..).take(values.len()).collect();
    let mut attributes = Attributes {
        keys: keys.as_mut_ptr() as u64,
        values: values.as_ptr() as u64,
        count: values.len() as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Attributes::default()
    };
    if values.is_empty() { Ok(()) } else { bpf(BPF_MAP_UPDATE_BATCH, &mut attributes) }
}
