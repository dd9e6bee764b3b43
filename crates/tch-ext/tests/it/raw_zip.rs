//! Zip archives byte by byte, so that they can say what no honest writer says (PKWARE APPNOTE, section 4.3).

/// One member. The local record holds the truth as to the name; everything else may lie.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
    /// 0 for stored, 8 for deflated.
    pub(crate) method: u16,
    pub(crate) crc: u32,
    /// How many bytes the archive says that it holds.
    pub(crate) packed: u64,
    /// How many bytes the archive says that they make.
    pub(crate) size: u64,
}

impl Member {
    /// An honest one.
    pub(crate) fn stored(name: &str, data: Vec<u8>) -> Self {
        let size = data.len() as u64;
        Self { name: name.to_owned(), crc: crc32(&data), data, method: 0, packed: size, size }
    }

    /// What the local and the central record share: flags, method, time, date, checksum, sizes, lengths.
    fn fields(&self) -> Vec<u8> {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let (packed, size) = if self.zip64().is_empty() {
            (small(self.packed), small(self.size))
        } else {
            ([0xFF; 4], [0xFF; 4])
        };
        let lengths = [self.name.len() as u16, self.zip64().len() as u16].map(u16::to_le_bytes).concat();
        let method = self.method.to_le_bytes();
        [[0; 2].as_slice(), &method, &[0; 4], &self.crc.to_le_bytes(), &packed, &size, &lengths].concat()
    }

    /// The zip64 field, where a size needs it.
    fn zip64(&self) -> Vec<u8> {
        if self.packed.max(self.size) < u64::from(u32::MAX) {
            return Vec::new();
        }
        [[1, 0, 16, 0].as_slice(), &self.size.to_le_bytes(), &self.packed.to_le_bytes()].concat()
    }
}

/// The whole archive: local records, central directory, end.
pub(crate) fn archive(members: &[Member]) -> Vec<u8> {
    let (mut local, mut central) = (Vec::new(), Vec::new());
    for member in members {
        let offset = (local.len() as u32).to_le_bytes();
        let (fields, name, zip64) = (member.fields(), member.name.as_bytes(), member.zip64());
        local.extend([b"PK\x03\x04\x2d\0".as_slice(), &fields, name, &zip64, &member.data].concat());
        // Without comment, disk number and attributes.
        central.extend(
            [b"PK\x01\x02\x2d\0\x2d\0".as_slice(), &fields, &[0; 10], &offset, name, &zip64].concat(),
        );
    }
    let count = (members.len() as u16).to_le_bytes();
    let [size, start] = [central.len(), local.len()].map(|n| (n as u32).to_le_bytes());
    let end = [b"PK\x05\x06".as_slice(), &[0; 4], &count, &count, &size, &start, &[0; 2]].concat();
    [local, central, end].concat()
}

/// The checksum of zip (ISO 3309), bit by bit.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// A `.npy` file as NumPy writes it (version 1.0), with this header and these data.
pub(crate) fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut header = header.as_bytes().to_vec();
    let unpadded = 10 + header.len() + 1;
    header.resize(header.len() + unpadded.next_multiple_of(64) - unpadded, b' ');
    header.push(b'\n');
    [b"\x93NUMPY\x01\0".as_slice(), &(header.len() as u16).to_le_bytes(), &header, data].concat()
}

/// A `.npy` header.
pub(crate) fn dict(descr: &str, fortran_order: bool, shape: &str) -> String {
    let order = if fortran_order { "True" } else { "False" };
    format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}")
}
