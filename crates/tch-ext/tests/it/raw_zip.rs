//! Zip archives byte by byte, so that they can say what no honest writer says (PKWARE APPNOTE 4.3).

/// One member; every field may lie.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
    /// 0 stored, 8 deflated.
    pub(crate) method: u16,
    pub(crate) crc: u32,
    /// What the central directory claims.
    pub(crate) packed: u64,
    pub(crate) size: u64,
}

impl Member {
    /// An honest one.
    pub(crate) fn stored(name: &str, data: Vec<u8>) -> Self {
        let size = data.len() as u64;
        Self { name: name.to_owned(), crc: crc32(&data), data, method: 0, packed: size, size }
    }
}

/// The archive: local records, central directory, end. Sizes that need it go into zip64 fields.
pub(crate) fn archive(members: &[Member]) -> Vec<u8> {
    let (mut local, mut central) = (Vec::new(), Vec::new());
    for m in members {
        let offset = local.len() as u32;
        let (fields, extra) = record(m);
        local.extend([b"PK\x03\x04".as_slice(), &45u16.to_le_bytes(), &fields, &extra_of(&extra)].concat());
        local.extend(&m.data);
        central.extend([b"PK\x01\x02".as_slice(), &[45, 0, 45, 0], &fields_central(&fields, offset), &extra_of(&extra)].concat());
    }
    let (start, size) = (local.len() as u32, central.len() as u32);
    let count = (members.len() as u16).to_le_bytes();
    let end = [b"PK\x05\x06".as_slice(), &[0; 4], &count, &count, &size.to_le_bytes(), &start.to_le_bytes(), &[0; 2]];
    [local, central, end.concat()].concat()
}
