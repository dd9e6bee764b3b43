//! Pickles instruction by instruction, and the archives around them, so that they can say what `torch.save` never says.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use crate::raw_zip::{Member, archive};

/// Protocol 2, these instructions, STOP.
pub(crate) fn pickle(instructions: &[u8]) -> Vec<u8> {
    [b"\x80\x02", instructions, b"."].concat()
}

/// BINUNICODE.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// LONG1 of eight bytes.
pub(crate) fn int(n: i64) -> Vec<u8> {
    [b"\x8a\x08".as_slice(), &n.to_le_bytes()].concat()
}

/// GLOBAL.
pub(crate) fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// MARK … TUPLE.
pub(crate) fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".as_slice(), &items.concat(), b"t"].concat()
}

pub(crate) fn ints(items: &[i64]) -> Vec<u8> {
    tuple(&items.iter().copied().map(int).collect::<Vec<_>>())
}

/// A function applied to arguments: REDUCE.
pub(crate) fn call(function: &[u8], arguments: &[Vec<u8>]) -> Vec<u8> {
    [function, &tuple(arguments), b"R"].concat()
}

/// BINPERSID.
pub(crate) fn storage(class: &str, key: &str, len: i64) -> Vec<u8> {
    let what = [text("storage"), global("torch", class), text(key), text("cpu"), int(len)];
    [tuple(&what), b"Q".to_vec()].concat()
}

pub(crate) fn tensor(
    class: &str,
    key: &str,
    len: i64,
    offset: i64,
    shape: &[i64],
    stride: &[i64],
) -> Vec<u8> {
    rebuilt(&[storage(class, key, len), int(offset), ints(shape), ints(stride)])
}

/// A tensor of these four arguments, and of the two that nobody looks at.
pub(crate) fn rebuilt(arguments: &[Vec<u8>]) -> Vec<u8> {
    let hooks = call(&global("collections", "OrderedDict"), &[]);
    let arguments = [arguments, &[b"\x89".to_vec(), hooks]].concat();
    call(&global("torch._utils", "_rebuild_tensor_v2"), &arguments)
}

/// The members as `torch.save` names them.
pub(crate) fn members(pickle: &[u8], storages: &[(&str, Vec<u8>)]) -> Vec<Member> {
    let mut members = vec![
        Member::stored("archive/data.pkl", pickle.to_vec()),
        Member::stored("archive/byteorder", b"little".to_vec()),
    ];
    let data = |(key, bytes): &(&str, Vec<u8>)| Member::stored(&format!("archive/data/{key}"), bytes.clone());
    members.extend(storages.iter().map(data));
    members.push(Member::stored("archive/version", b"3\n".to_vec()));
    members
}

/// Writes them as `ae.pt`.
pub(crate) fn saved(folder: &tempfile::TempDir, members: &[Member]) -> PathBuf {
    let path = folder.path().join("ae.pt");
    fs::write(&path, archive(members)).unwrap();
    path
}

/// The members of an archive.
pub(crate) fn unzip(path: &Path) -> Vec<Member> {
    let mut archive = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    let count = archive.len();
    let mut read = |index| {
        let mut member = archive.by_index(index).unwrap();
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).unwrap();
        Member::stored(member.name(), bytes)
    };
    (0..count).map(&mut read).collect()
}
