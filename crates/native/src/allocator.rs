/// Asks the C library to keep freed memory instead of returning it to the system; false where it takes no such wish.
///
/// libtorch frees and allocates every intermediate result. glibc returns large blocks at once, so each new tensor is paid
/// for with page faults: a tenth of a forward pass on the CPU. A process that calls this holds what it once held at its peak.
/// It is for programs to call, early in `main`; no library function here does.
pub fn keep_freed_memory() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt takes two integers, touches no memory of ours, and may be called at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX) == 1
                && libc::mallopt(libc::M_TOP_PAD, 64 << 20) == 1
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    {
        false
    }
}
