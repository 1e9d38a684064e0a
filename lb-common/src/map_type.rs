//! `map_type!`: the one way to declare a type that lies in a BPF map.

/// Declares a `repr(C)` struct that both sides of a map read.
///
/// Adds what a map value needs: a layout without hidden padding (checked when compiling, since the
/// verifier refuses to copy uninitialised bytes and `bpftool` would print them), plain-old-data
/// semantics, and `aya::Pod` in user space. Fields must be fixed-size integers or byte arrays.
macro_rules! map_type {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $( $(#[$field_attribute:meta])* pub $field:ident: $type:ty, )*
        }
    ) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            $( $(#[$field_attribute])* pub $field: $type, )*
        }

        impl $name {
            /// A value of zeros, which is valid for every map type.
            pub const ZERO: Self = {
                // SAFETY: the fields are integers and byte arrays, for which zeros are valid.
                unsafe { core::mem::zeroed() }
            };
        }

        const _: () = assert!(
            size_of::<$name>() == 0 $( + size_of::<$type>() )*,
            concat!(stringify!($name), " has hidden padding: add an explicit field"),
        );

        // SAFETY: repr(C), no padding (asserted above), all bit patterns are valid.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}

pub(crate) use map_type;
