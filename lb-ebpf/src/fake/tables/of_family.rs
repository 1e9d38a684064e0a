//! The state of one family, as the data path asks for it.

use lb_common::{
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6},
    news::{Begun4, Begun6, TELL},
};

use super::{FakeTables, FlowTables, News, Step};
use crate::{
    admit, connect,
    cookie::{Cookie, Question},
    family::{Family, Tuple, V4, V6},
    packet::Packet,
    select,
    tables::{Flows, NotInserted, Scratch},
};

macro_rules! flows {
    (
        $family:ty,
        $key:ty,
        $entry:ty,
        $half:ty,
        $tables:ident,
        $begun_type:ident,
        $begun:ident,
        $ended:ident
    ) => {
        impl Flows<$family> for FakeTables {
            fn flow(&self, key: &$key) -> Option<&mut $entry> {
                self.$tables.flows.get(key)
            }

            fn insert_flow(&self, key: &$key, entry: &$entry) -> Result<(), NotInserted> {
                self.let_others_run(Step::Establish);
                self.$tables.flows.insert(key, entry)
            }

            fn remove_flow(&self, key: &$key) -> bool {
                self.$tables.flows.remove(key)
            }

            fn half_open(&self, key: &$key) -> Option<&mut $half> {
                self.$tables.half_open.get(key)
            }

            fn insert_half_open(&self, key: &$key, entry: &$half) -> Result<(), NotInserted> {
                self.$tables.half_open.insert(key, entry)
            }

            fn replace_half_open(&self, key: &$key, entry: &$half) -> Result<(), NotInserted> {
                self.let_others_run(Step::Replay);
                self.$tables.half_open.replace(key, entry)
            }

            fn remove_half_open(&self, key: &$key) -> bool {
                self.$tables.half_open.remove(key)
            }

            fn scratch(&self) -> Option<&mut Scratch<$family>> {
                // SAFETY: only the packet in work on this CPU uses it, and takes it anew after each
                // call that does.
                Some(unsafe { &mut *self.$tables.scratch() })
            }

            fn tell_begun(&self) {
                let scratch = Flows::<$family>::scratch(self).copied();
                let Some(Scratch { client, server, entry, .. }) = scratch else { return };
                if self.node.get().flags & TELL != 0 {
                    let begun = $begun_type { client, server, entry };
                    self.news.borrow_mut().push(News::$begun(begun));
                }
            }

            fn tell_ended(&self, server: &$key) {
                if self.node.get().flags & TELL != 0 {
                    self.news.borrow_mut().push(News::$ended(*server));
                }
            }

            fn cookie(
                &self,
                _packet: &Packet,
                _tuple: &Tuple<<$family as Family>::Address>,
                _question: &Question<$family>,
            ) -> Option<Cookie> {
                self.cookie.get()
            }

            fn find_port(&self) -> bool {
                connect::find_port::<$family, Self>(self)
            }

            fn take_port(&self, attempt: u32) -> bool {
                connect::take_port::<$family, Self>(self, attempt)
            }

            fn judge(&self, index: u32, flags: u32, rate: u32, burst: u32) -> u32 {
                admit::judge::<$family, Self>(self, index, flags, rate, burst)
            }

            fn consider(&self, step: u32) -> bool {
                select::consider::<$family, Self>(self, step)
            }
        }

        impl AsRef<FlowTables<$family>> for FakeTables {
            fn as_ref(&self) -> &FlowTables<$family> {
                &self.$tables
            }
        }
    };
}

flows!(V4, FlowKey4, FlowEntry4, HalfOpen4, v4, Begun4, Begun4, Ended4);
flows!(V6, FlowKey6, FlowEntry6, HalfOpen6, v6, Begun6, Begun6, Ended6);
