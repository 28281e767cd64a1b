//! What wakes a loop, and what notices a fork: the only unsafe code of this crate.
#![expect(
    unsafe_code,
    reason = "eventfd, pipe and pthread_atfork have no safe door in std"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

static FORKS: AtomicU32 = AtomicU32::new(0);
static WATCHED: Once = Once::new();
static THREADS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Counts forks from here on, in the child.
pub(crate) fn watch_forks() {
    WATCHED.call_once(|| {
        // SAFETY: the handler only adds to an atomic, which is safe after a fork, and it lives as long as the process.
        unsafe {
            libc::pthread_atfork(None, None, Some(after_fork_in_child));
        }
    });
}

/// How many forks lie between the process that first loaded this module and this one.
pub(crate) fn generation() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// A number for this thread.
pub(crate) fn this_thread() -> u64 {
    THREAD.with(|thread| *thread)
}

/// Makes a loop look into its session's inbox.
pub(crate) struct Wake {
    /// The number of the reader, for the loop that watches it.
    fd: RawFd,
    /// The reader, and the writer where that is not the same; None once the session is closed.
    files: Mutex<Option<(File, Option<File>)>>,
    /// The inbox has something.
    pending: AtomicBool,
    /// Something is written, or is about to be.
    written: AtomicBool,
    /// The thread that drains.
    owner: AtomicU64,
}

impl Wake {
    pub(crate) fn new() -> std::io::Result<Self> {
        let files = open()?;
        Ok(Self {
            fd: files.0.as_raw_fd(),
            files: Mutex::new(Some(files)),
            pending: AtomicBool::new(false),
            written: AtomicBool::new(false),
            owner: AtomicU64::new(this_thread()),
        })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    pub(crate) fn set_pending(&self, pending: bool) {
        self.pending.store(pending, Ordering::Release);
    }

    /// Whether the thread that asks is the one that drains.
    pub(crate) fn is_mine(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == this_thread()
    }

    /// Makes the descriptor readable, unless it is or is about to be: one who finds the flag set put something into the
    /// inbox before, and whoever takes the flag back looks into that afterwards.
    pub(crate) fn write(&self) {
        if self.written.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some((reader, writer)) = &*self.files() {
            let mut file = writer.as_ref().unwrap_or(reader);
            // What can be written once to an empty pipe or counter does not fail.
            let _ = file.write(&1u64.to_ne_bytes());
        }
    }

    /// Makes the descriptor not readable; the caller is the thread that drains from here on.
    pub(crate) fn read(&self) {
        self.owner.store(this_thread(), Ordering::Relaxed);
        if !self.written.load(Ordering::Acquire) {
            return;
        }
        let mut buffer = [0u8; 512];
        if let Some((reader, _)) = &*self.files() {
            let mut file = reader;
            if file.read(&mut buffer).is_err() {
                // Who has set the flag has not written yet: it is read the next time, or the loop would be woken by
                // what nobody takes, again and again, until that thread goes on.
                return;
            }
        }
        self.written.swap(false, Ordering::AcqRel);
    }

    /// Gives the descriptors back, whoever still holds the session: nobody is woken any more.
    pub(crate) fn close(&self) {
        self.files().take();
    }

    fn files(&self) -> MutexGuard<'_, Option<(File, Option<File>)>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn open() -> std::io::Result<(File, Option<File>)> {
    // SAFETY: eventfd takes two numbers and gives a descriptor or -1.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((File::from(fd), None))
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn open() -> std::io::Result<(File, Option<File>)> {
    let mut fds: [RawFd; 2] = [0; 2];
    // SAFETY: pipe writes two descriptors into the array it is given.
    if unsafe { libc::pipe(fds.as_mut_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let [reader, writer] = fds;
    for fd in [reader, writer] {
        // SAFETY: both descriptors were just made.
        unsafe {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
        }
    }
    // SAFETY: the descriptors were just made and belong to nobody else.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(reader), OwnedFd::from_raw_fd(writer)) };
    Ok((File::from(reader), Some(File::from(writer))))
}
