//! The part of Python's pickle language that `torch.save` needs for tensors and plain values. What it would call is known
//! by name, and nothing is called.
//! Source: CPython's `Lib/pickletools.py`, which describes every opcode; PyTorch's `torch/_utils.py`.

use std::collections::HashMap;

use tch::Kind;

/// What a pickle may put on its stack in all. It bounds the memory that a few bytes could ask for again and again.
const MAX_OBJECTS: usize = 1 << 22;
/// The longest name that is shown, or kept of a device.
const MAX_SHOWN: usize = 100;
const ONLY: &str = "which is not read: only tensors and plain values are";

/// The place of an object in [`Objects`].
pub(super) type Id = usize;

/// An object that a pickle made. Objects hold each other by place, as Python's do by reference: a list that is
/// filled after it was used is filled wherever it was used.
#[derive(Debug)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage { kind: Kind, key: Id, len: i64 },
    Tensor { storage: Id, offset: Id, shape: Id, stride: Id },
}

/// The functions and classes that are known.
#[derive(Debug, Clone, Copy)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Device,
    Storage(Kind),
}

const GLOBALS: [(&str, Global); 15] = [
    ("collections.OrderedDict", Global::OrderedDict),
    ("torch._utils._rebuild_tensor_v2", Global::RebuildTensor),
    ("torch._utils._rebuild_parameter", Global::RebuildParameter),
    ("torch.Size", Global::Size),
    ("torch.device", Global::Device),
    ("torch.FloatStorage", Global::Storage(Kind::Float)),
    ("torch.DoubleStorage", Global::Storage(Kind::Double)),
    ("torch.HalfStorage", Global::Storage(Kind::Half)),
    ("torch.BFloat16Storage", Global::Storage(Kind::BFloat16)),
    ("torch.LongStorage", Global::Storage(Kind::Int64)),
    ("torch.IntStorage", Global::Storage(Kind::Int)),
    ("torch.ShortStorage", Global::Storage(Kind::Int16)),
    ("torch.CharStorage", Global::Storage(Kind::Int8)),
    ("torch.ByteStorage", Global::Storage(Kind::Uint8)),
    ("torch.BoolStorage", Global::Storage(Kind::Bool)),
];

/// The dtypes that a configuration may name, in any of which nobody needs to be able to compute.
const DTYPES: [&str; 17] = [
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex64",
    "complex128",
];

/// All that a pickle made.
pub(super) struct Objects(Vec<Object>);

impl Objects {
    pub(super) fn get(&self, id: Id) -> &Object {
        // Places come from `Machine::push` alone, so there is something at each.
        self.0.get(id).unwrap_or(&Object::None)
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        if let Object::Int(n) = self.get(id) { Some(*n) } else { None }
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        if let Object::Str(text) = self.get(id) { Some(text) } else { None }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Object::Tuple(items) = self.get(id) { Some(items) } else { None }
    }

    /// Whether it is what an optional argument is when there is nothing to say.
    fn is_empty(&self, id: Id) -> bool {
        match self.get(id) {
            Object::None => true,
            Object::Dict(entries) => entries.is_empty(),
            _ => false,
        }
    }
}

/// Reads a pickle: its objects, and which of them is the whole.
///
/// # Errors
/// A sentence about the pickle.
pub(super) fn load(bytes: &[u8]) -> Result<(Objects, Id), String> {
    let mut machine = Machine {
        rest: bytes,
        objects: Objects(Vec::new()),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        pushed: 0,
    };
    let root = machine.run()?;
    Ok((machine.objects, root))
}

/// What is shown of a text that may be of any length.
pub(super) fn shown(text: &str) -> &str {
    let end = text.char_indices().nth(MAX_SHOWN);
    end.and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}

struct Machine<'b> {
    rest: &'b [u8],
    objects: Objects,
    stack: Vec<Id>,
    /// The heights at which MARK was said.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// How often something was put on the stack.
    pushed: usize,
}

impl<'b> Machine<'b> {
    fn run(&mut self) -> Result<Id, String> {
        let [op, protocol] = self.array()?;
        if op != 0x80 || !(2..=5).contains(&protocol) {
            return Err("its pickle is not of protocol 2, 3, 4 or 5".to_owned());
        }
        loop {
            let [op] = self.array()?;
            if op == b'.' {
                return self.stop();
            }
            self.step(op)?;
        }
    }

    /// STOP: one object is left, and nothing follows.
    fn stop(&mut self) -> Result<Id, String> {
        let root = self.pop()?;
        if !(self.stack.is_empty() && self.marks.is_empty() && self.rest.is_empty()) {
            return Err("its pickle is damaged: it stops before its end".to_owned());
        }
        Ok(root)
    }

    /// One instruction; letters and numbers as in `pickletools`.
    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            b'N' => self.push(Object::None),
            0x88 => self.push(Object::Bool(true)),  // NEWTRUE
            0x89 => self.push(Object::Bool(false)), // NEWFALSE
            b'J' => self.array().and_then(|b| self.push(Object::Int(i32::from_le_bytes(b).into()))),
            b'K' => self.array().and_then(|b| self.push(Object::Int(u8::from_le_bytes(b).into()))),
            b'M' => self.array().and_then(|b| self.push(Object::Int(u16::from_le_bytes(b).into()))),
            b'G' => self.array().and_then(|b| self.push(Object::Float(f64::from_be_bytes(b)))), // BINFLOAT
            0x8a => self.length::<1>().and_then(|n| self.long(n)),                              // LONG1
            0x8b => self.length::<4>().and_then(|n| self.long(n)),                              // LONG4
            0x8c => self.length::<1>().and_then(|n| self.text(n)), // SHORT_BINUNICODE
            b'X' => self.length::<4>().and_then(|n| self.text(n)), // BINUNICODE
            0x8d => self.length::<8>().and_then(|n| self.text(n)), // BINUNICODE8
            b']' => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            b')' => self.push(Object::Tuple(Vec::new())),
            b'(' => self.mark(),
            0x85..=0x87 => self.pop_several(op - 0x84).and_then(|items| self.push(Object::Tuple(items))), // TUPLE1 to 3
            b't' => self.pop_mark().and_then(|items| self.push(Object::Tuple(items))),
            b'a' => self.pop_several(1).and_then(|items| self.append(items)), // APPEND
            b'e' => self.pop_mark().and_then(|items| self.append(items)),     // APPENDS
            b's' => self.pop_several(2).and_then(|items| self.set_items(&items)), // SETITEM
            b'u' => self.pop_mark().and_then(|items| self.set_items(&items)), // SETITEMS
            b'h' => self.array().and_then(|b| self.recall(u8::from_le_bytes(b).into())), // BINGET
            b'j' => self.array().and_then(|b| self.recall(u32::from_le_bytes(b))), // LONG_BINGET
            b'q' => self.array().and_then(|b| self.memoize(u8::from_le_bytes(b).into())), // BINPUT
            b'r' => self.array().and_then(|b| self.memoize(u32::from_le_bytes(b))), // LONG_BINPUT
            0x94 => self.memoize(self.memo.len() as u32),                     // MEMOIZE
            0x95 => self.frame(),
            b'c' => self.global(),
            0x93 => self.stack_global(),
            b'Q' => self.persistent_id(),
            b'R' => self.reduce(),
            b'b' => self.build(),
            _ => Err(self.refused(op)),
        }
    }

    fn refused(&mut self, op: u8) -> String {
        match op {
            b'i' => match (self.line(), self.line()) {
                (Ok(module), Ok(name)) => unknown(module, name),
                (Err(problem), _) | (_, Err(problem)) => problem,
            },
            // OBJ, NEWOBJ, NEWOBJ_EX: what is no known class was refused before.
            b'o' | 0x81 | 0x92 => {
                let class = self.stack.iter().rev().find_map(|&id| match self.objects.get(id) {
                    Object::Global(global) => Some(global.name()),
                    _ => None,
                });
                format!("its pickle makes an object of `{}`, {ONLY}", class.unwrap_or("no class"))
            }
            b'B' | b'C' | 0x8e | 0x96 => format!("its pickle holds bytes, {ONLY}"),
            0x8f..=0x91 => format!("its pickle holds a set, {ONLY}"),
            _ => format!("its pickle holds opcode {op:#04x}, {ONLY}"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.rest.split_first_chunk().ok_or_else(truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, n: usize) -> Result<&'b [u8], String> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// A length of N bytes. One that no index holds is beyond the end of any pickle.
    fn length<const N: usize>(&mut self) -> Result<usize, String> {
        let bytes: [u8; N] = self.array()?;
        let length = bytes.iter().rev().fold(0_u64, |n, &byte| n << 8 | u64::from(byte));
        usize::try_from(length).map_err(|_| truncated())
    }

    fn line(&mut self) -> Result<&'b str, String> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or_else(truncated)?;
        let line = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| "its pickle holds a name that is not UTF-8".to_owned())
    }

    fn counted(&mut self) -> Result<(), String> {
        self.pushed += 1;
        if self.pushed > MAX_OBJECTS {
            return Err(format!("its pickle makes more than {MAX_OBJECTS} objects"));
        }
        Ok(())
    }

    fn push(&mut self, object: Object) -> Result<(), String> {
        let id = self.objects.0.len();
        self.objects.0.push(object);
        self.push_again(id)
    }

    fn push_again(&mut self, id: Id) -> Result<(), String> {
        self.counted()?;
        self.stack.push(id);
        Ok(())
    }

    fn mark(&mut self) -> Result<(), String> {
        self.counted()?;
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The top of the stack, if it is above the last mark.
    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = if self.stack.len() > floor { self.stack.pop() } else { None };
        top.ok_or_else(unsound)
    }

    fn pop_several(&mut self, n: u8) -> Result<Vec<Id>, String> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    /// All above the last mark, which goes too.
    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let floor = self.marks.pop().ok_or_else(unsound)?;
        // `pop` stops at a mark, so the stack is never below it.
        Ok(self.stack.split_off(floor.min(self.stack.len())))
    }

    fn top(&mut self) -> Result<&mut Object, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let id = self.stack.get(floor..).and_then(<[Id]>::last).ok_or_else(unsound)?;
        self.objects.0.get_mut(*id).ok_or_else(unsound)
    }

    fn append(&mut self, mut items: Vec<Id>) -> Result<(), String> {
        let Object::List(list) = self.top()? else { return Err(unsound()) };
        list.append(&mut items);
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), String> {
        let (pairs, []) = items.as_chunks() else { return Err(unsound()) };
        let Object::Dict(entries) = self.top()? else { return Err(unsound()) };
        entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    /// An integer in two's complement, little-endian, of any length but not longer than ours.
    fn long(&mut self, n: usize) -> Result<(), String> {
        let bytes = self.take(n)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xFF } else { 0 }; 8];
        let Some(low) = whole.get_mut(..n) else {
            return Err(format!("its pickle holds an integer of {n} bytes, but 8 are the most that is read"));
        };
        low.copy_from_slice(bytes);
        self.push(Object::Int(i64::from_le_bytes(whole)))
    }

    fn text(&mut self, n: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.take(n)?);
        let text = text.map_err(|_| "its pickle holds a text that is not UTF-8".to_owned())?;
        self.push(Object::Str(text.to_owned()))
    }

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let id = *self.memo.get(&at).ok_or_else(unsound)?;
        self.push_again(id)
    }

    fn memoize(&mut self, at: u32) -> Result<(), String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let id = *self.stack.get(floor..).and_then(<[Id]>::last).ok_or_else(unsound)?;
        self.memo.insert(at, id);
        // Python notes each object once at most.
        if self.memo.len() > self.objects.0.len() { Err(unsound()) } else { Ok(()) }
    }

    fn frame(&mut self) -> Result<(), String> {
        let length = self.length::<8>()?;
        if length > self.rest.len() { Err(truncated()) } else { Ok(()) }
    }

    fn global(&mut self) -> Result<(), String> {
        let (module, name) = (self.line()?, self.line()?);
        let object = known(module, name)?;
        self.push(object)
    }

    fn stack_global(&mut self) -> Result<(), String> {
        let (name, module) = (self.pop()?, self.pop()?);
        let (module, name) = self.objects.text(module).zip(self.objects.text(name)).ok_or_else(unsound)?;
        let object = known(module, name)?;
        self.push(object)
    }

    /// `('storage', class, key, where it was, elements)`, as `torch.save` names a storage.
    fn persistent_id(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let Some(&[word, class, key, _, len]) = self.objects.tuple(id) else { return Err(unsound()) };
        let len = self.objects.int(len).filter(|n| *n >= 0);
        match (self.objects.text(word), self.objects.get(class), len) {
            (Some("storage"), &Object::Global(Global::Storage(kind)), Some(len)) => {
                self.push(Object::Storage { kind, key, len })
            }
            _ => Err(unsound()),
        }
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = self.objects.tuple(arguments).ok_or_else(unsound)?;
        let &Object::Global(function) = self.objects.get(function) else {
            return Err(format!("its pickle calls what is no function, {ONLY}"));
        };
        match (function, arguments) {
            (Global::OrderedDict, []) => self.push(Object::Dict(Vec::new())),
            (Global::RebuildTensor, &[storage, offset, shape, stride, _grad, _hooks, ref metadata @ ..]) => {
                // The metadata say whether the values are to be negated or conjugated.
                match metadata {
                    [] => {}
                    &[metadata] if self.objects.is_empty(metadata) => {}
                    _ => return Err("its pickle holds a tensor with metadata, which is not read".to_owned()),
                }
                self.push(Object::Tensor { storage, offset, shape, stride })
            }
            (Global::RebuildParameter, &[data, _, _])
                if matches!(self.objects.get(data), Object::Tensor { .. }) =>
            {
                self.push_again(data)
            }
            (Global::Size, &[sizes]) if self.objects.tuple(sizes).is_some() => self.push_again(sizes),
            (Global::Device, &[kind]) => {
                let device = self.objects.text(kind).map(|kind| shown(kind).to_owned());
                device.ok_or_else(unsound).and_then(|device| self.push(Object::Str(device)))
            }
            (Global::Device, &[kind, index]) => {
                let device = self.objects.text(kind).zip(self.objects.int(index));
                let device = device.map(|(kind, index)| format!("{}:{index}", shown(kind)));
                device.ok_or_else(unsound).and_then(|device| self.push(Object::Str(device)))
            }
            _ => Err(format!("its pickle calls `{}` with odd arguments", function.name())),
        }
    }

    /// BUILD: a state dict's `_metadata` comes this way, and holds nothing but versions.
    fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.top()? {
            Object::Dict(_) => Ok(()),
            _ => Err(format!("its pickle sets the attributes of what is no dict, {ONLY}")),
        }
    }
}

impl Global {
    pub(super) fn name(self) -> &'static str {
        let same = |other: Self| match (self, other) {
            (Self::Storage(a), Self::Storage(b)) => a == b,
            _ => std::mem::discriminant(&self) == std::mem::discriminant(&other),
        };
        GLOBALS.iter().find(|(_, global)| same(*global)).map_or("no class", |(name, _)| name)
    }
}

fn known(module: &str, name: &str) -> Result<Object, String> {
    if module == "torch" && DTYPES.contains(&name) {
        return Ok(Object::Str(format!("torch.{name}")));
    }
    let is_it = |full: &str| full.strip_prefix(module).and_then(|rest| rest.strip_prefix('.')) == Some(name);
    let found = GLOBALS.iter().find(|(full, _)| is_it(full));
    found.map(|(_, global)| Object::Global(*global)).ok_or_else(|| unknown(module, name))
}

fn unknown(module: &str, name: &str) -> String {
    format!("its pickle asks for `{}.{}`, {ONLY}", shown(module), shown(name))
}

fn truncated() -> String {
    "its pickle is truncated".to_owned()
}

fn unsound() -> String {
    "its pickle is damaged: an instruction does not find what it works on".to_owned()
}
