//! Operations of bpf(2) that aya does not offer: thousands of entries in one system call, and taking
//! an entry out so that nobody else can have it.

use std::{
    io,
    ops::{ControlFlow, Range},
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::Pod;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

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

/// The member of `union bpf_attr` for the commands on one element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<A>(command: libc::c_long, attributes: &mut A) -> io::Result<()> {
    // SAFETY: the attributes are those of the command, and point to memory that the callers below
    // keep alive and large enough during the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where a walk over a map stands. Between two steps entries may come and go: those that are there
/// during the whole walk are seen, and in a hash table none is seen twice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor(Option<u32>);

/// Room for one step of a walk, used again for the next.
#[derive(Debug)]
pub(super) struct Chunk<K, V> {
    room: usize,
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Pod, V: Pod> Chunk<K, V> {
    pub(super) fn new() -> Self {
        Self::of(CHUNK)
    }

    /// Room for so many entries.
    pub(super) fn of(room: usize) -> Self {
        Self { room, keys: Vec::with_capacity(room), values: Vec::with_capacity(room) }
    }

    /// Reads the next entries. False if they are the last.
    pub(super) fn read(&mut self, map: BorrowedFd<'_>, cursor: &mut Cursor) -> io::Result<bool> {
        let (keys, values) = (self.keys.as_mut_ptr(), self.values.as_mut_ptr());
        let (count, more) = lookup(map, cursor, keys as u64, values as u64, self.room)?;
        // SAFETY: the kernel has written `count` keys and values, at most the capacity; all bit
        // patterns are valid (`Pod`).
        unsafe {
            self.keys.set_len(count);
            self.values.set_len(count);
        }
        Ok(more)
    }

    /// What was read last.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&K, &V)> {
        self.keys.iter().zip(&self.values)
    }
}

/// One `BPF_MAP_LOOKUP_BATCH` of up to `room` entries: how many there were, and whether there are
/// more.
fn lookup(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: u64,
    values: u64,
    room: usize,
) -> io::Result<(usize, bool)> {
    let mut next: u32 = 0;
    let mut attributes = Attributes {
        in_batch: cursor.0.as_ref().map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
        out_batch: &raw mut next as u64,
        keys,
        values,
        count: room as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Attributes::default()
    };
    let more = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    cursor.0 = Some(next);
    Ok(((attributes.count as usize).min(room), more))
}

/// Calls `visit` with every entry of a map whose keys are of 4 bytes or that is a hash table, until
/// it breaks. Entries that come and go meanwhile may be missed.
pub(super) fn for_each<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(&K, &V) -> ControlFlow<()>,
) -> io::Result<()> {
    let (mut chunk, mut cursor) = (Chunk::new(), Cursor::default());
    loop {
        let more = chunk.read(map, &mut cursor)?;
        for (key, value) in chunk.entries() {
            if visit(key, value).is_break() {
                return Ok(());
            }
        }
        if !more {
            return Ok(());
        }
    }
}

/// Calls `visit` with the values of all CPUs at these indexes of a per-CPU array, or at those of them
/// that there are.
///
/// The size of `V` must be a multiple of 8, as the kernel spaces the values.
pub(super) fn read_per_cpu<V: Pod>(
    map: BorrowedFd<'_>,
    cpus: usize,
    indexes: Range<u32>,
    mut visit: impl FnMut(u32, &[V]),
) -> io::Result<()> {
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let most = CHUNK.min(indexes.len());
    let mut keys: Vec<u32> = Vec::with_capacity(most);
    let mut values: Vec<V> = Vec::with_capacity(most * cpus);
    // An array's place in a walk is the index that was read last.
    let (mut cursor, mut read) = (Cursor(indexes.start.checked_sub(1)), 0);
    while read < indexes.len() {
        let room = most.min(indexes.len() - read);
        let (to_keys, to_values) = (keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64);
        let (count, more) = lookup(map, &mut cursor, to_keys, to_values, room)?;
        // SAFETY: the kernel has written `count` keys, and a value of each CPU for each; both are
        // within the capacity, and all bit patterns are valid (`Pod`).
        unsafe {
            keys.set_len(count);
            values.set_len(count * cpus);
        }
        for (key, values) in keys.iter().zip(values.chunks_exact(cpus)) {
            visit(*key, values);
        }
        read += count;
        if !more || count == 0 {
            break;
        }
    }
    Ok(())
}

/// Writes many entries. Stops at the first that the map refuses.
pub(super) fn update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    assert_eq!(keys.len(), values.len(), "a value for each key");
    for (keys, values) in keys.chunks(CHUNK).zip(values.chunks(CHUNK)) {
        update_raw(map, keys.as_ptr() as u64, values.as_ptr() as u64, keys.len())?;
    }
    Ok(())
}

fn update_raw(map: BorrowedFd<'_>, keys: u64, values: u64, count: usize) -> io::Result<()> {
    let mut attributes = Attributes {
        keys,
        values,
        count: count as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Attributes::default()
    };
    if count == 0 { Ok(()) } else { bpf(BPF_MAP_UPDATE_BATCH, &mut attributes) }
}

/// Writes values to consecutive indexes of an array map, from `start` up.
pub(super) fn update_array<V: Pod>(
    map: BorrowedFd<'_>,
    start: u32,
    values: &[V],
) -> io::Result<()> {
    let keys: Vec<u32> = (start..).take(values.len()).collect();
    update(map, &keys, values)
}

/// Reads `len` consecutive elements of an array map, from `start` up, or as many as there are.
pub(super) fn read_array<V: Pod>(map: BorrowedFd<'_>, start: u32, len: u32) -> io::Result<Vec<V>> {
    let mut read = Vec::with_capacity(len as usize);
    let mut keys: Vec<u32> = Vec::with_capacity(CHUNK);
    let mut values: Vec<V> = Vec::with_capacity(CHUNK);
    // An array's place in a walk is the index that was read last.
    let mut cursor = Cursor(start.checked_sub(1));
    while read.len() < len as usize {
        let room = CHUNK.min(len as usize - read.len());
        let (to_keys, to_values) = (keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64);
        let (count, more) = lookup(map, &mut cursor, to_keys, to_values, room)?;
        // SAFETY: the kernel has written `count` values, at most the capacity; all bit patterns are
        // valid (`Pod`).
        unsafe { values.set_len(count) };
        read.extend_from_slice(&values);
        if !more || count == 0 {
            break;
        }
    }
    Ok(read)
}

/// Writes the same value of every CPU to these indexes of a per-CPU array. The size of `V` must be
/// a multiple of 8.
pub(super) fn update_per_cpu<V: Pod>(
    map: BorrowedFd<'_>,
    cpus: usize,
    indexes: &[u32],
    value: V,
) -> io::Result<()> {
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let values = vec![value; CHUNK.min(indexes.len()) * cpus];
    for indexes in indexes.chunks(CHUNK) {
        update_raw(map, indexes.as_ptr() as u64, values.as_ptr() as u64, indexes.len())?;
    }
    Ok(())
}

/// Copies every entry of a map into another of the same kind. `value_bytes` is the size of a value
/// as bpf(2) sees it: that of all CPUs together for a per-CPU map.
pub(super) fn copy(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    key_bytes: usize,
    value_bytes: usize,
) -> io::Result<()> {
    let mut keys = vec![0_u64; (CHUNK * key_bytes).div_ceil(8)];
    let mut values = vec![0_u64; (CHUNK * value_bytes).div_ceil(8)];
    let (keys, values) = (keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64);
    let mut cursor = Cursor::default();
    loop {
        let (count, more) = lookup(from, &mut cursor, keys, values, CHUNK)?;
        update_raw(to, keys, values, count)?;
        if !more {
            return Ok(());
        }
    }
}

/// The entry of a key, if there is one.
pub(super) fn get<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    read_one(BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Takes the entry of a key out of a hash table, in one step: what is returned is what was there last,
/// and nobody else gets it (Linux 5.14).
pub(super) fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    read_one(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

fn read_one<K: Pod, V: Pod>(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::uninit();
    let mut attributes = Element {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        ..Element::default()
    };
    match bpf(command, &mut attributes) {
        // SAFETY: the kernel has written the value; all bit patterns are valid (`Pod`).
        Ok(()) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Adds an entry, unless there is one of that key: then the answer is false.
pub(super) fn insert_new<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<bool> {
    write_one(map, key, value, BPF_NOEXIST, libc::EEXIST)
}

/// Replaces the entry of a key, if there is one: otherwise the answer is false.
pub(super) fn replace<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<bool> {
    write_one(map, key, value, BPF_EXIST, libc::ENOENT)
}

/// False if it is refused with the error `no`.
fn write_one<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
    no: i32,
) -> io::Result<bool> {
    let mut attributes = Element {
        map_fd: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags,
        ..Element::default()
    };
    match bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(no) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The values of all CPUs at an index of a per-CPU array. The size of `V` must be a multiple of 8.
pub(super) fn get_per_cpu<V: Pod>(
    map: BorrowedFd<'_>,
    cpus: usize,
    index: u32,
) -> io::Result<Vec<V>> {
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let mut values: Vec<V> = Vec::with_capacity(cpus);
    let mut attributes = Element {
        map_fd: map.as_raw_fd() as u32,
        key: &raw const index as u64,
        value: values.as_mut_ptr() as u64,
        ..Element::default()
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes)?;
    // SAFETY: the kernel has written the value of each CPU; all bit patterns are valid (`Pod`).
    unsafe { values.set_len(cpus) };
    Ok(values)
}
