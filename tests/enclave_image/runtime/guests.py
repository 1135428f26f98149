# SPDX-License-Identifier: MIT
"""Small WASI programs, written in WebAssembly's text form."""

from __future__ import annotations

import wasmtime

_IMPORTS = """
 (import "wasi_snapshot_preview1" "path_open"
  (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "fd_filestat_get" (func $filestat (param i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
 (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
 (memory (export "memory") 2)
 ;; 0: iovec  8: count  16: an opened descriptor  1024: a buffer of a page
 (func $check (param $error i32)
  (if (local.get $error) (then (call $exit (local.get $error)))))
 (func $open (param $dir i32) (param $name i32) (param $length i32) (param $create i32)
  (call $check (call $path_open (local.get $dir) (i32.const 0) (local.get $name) (local.get $length)
   (local.get $create) (select (i64.const 64) (i64.const 2) (local.get $create)) (i64.const 0)
   (i32.const 0) (i32.const 16))))
 (func $write (param $fd i32) (param $at i32) (param $length i32)
  (i32.store (i32.const 0) (local.get $at))
  (i32.store (i32.const 4) (local.get $length))
  (call $check (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
 (func $read (param $fd i32) (result i32)
  (i32.store (i32.const 0) (i32.const 1024))
  (i32.store (i32.const 4) (i32.const 65536))
  (call $check (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
  (i32.load (i32.const 8)))
"""


def guest(start: str, **texts: str) -> bytes:
    """Return a program; `$name` and `$name_length` in its body stand for each text's place and length."""
    data = ""
    address = 512
    for name, value in texts.items():
        data += f' (data (i32.const {address}) "{value}")\n'
        start = start.replace(f"${name}_length", f"(i32.const {len(value)})").replace(
            f"${name}", f"(i32.const {address})"
        )
        address += len(value) + 1
    return bytes(wasmtime.wat2wasm(f'(module {_IMPORTS} {data} (func (export "_start") (local $n i32) {start}))'))


# Descriptors of preopened directories begin at 3, in the order of their paths.
def copy(source: str, target: str, *, source_dir: int = 3, target_dir: int = 4) -> bytes:
    """Copy up to 64 KiB of one file into another, and tell stdout."""
    return guest(
        f"""(call $open (i32.const {source_dir}) $source $source_length (i32.const 0))
        (local.set $n (call $read (i32.load (i32.const 16))))
        (call $open (i32.const {target_dir}) $target $target_length (i32.const 1))
        (call $write (i32.load (i32.const 16)) (i32.const 1024) (local.get $n))
        (call $write (i32.const 1) $done $done_length)""",
        source=source,
        target=target,
        done="copied",
    )


def write(target: str, content: str, *, directory: int = 3, exit_code: int = 0) -> bytes:
    """Write one file, then exit."""
    return guest(
        f"""(call $open (i32.const {directory}) $target $target_length (i32.const 1))
        (call $write (i32.load (i32.const 16)) $content $content_length)
        (call $exit (i32.const {exit_code}))""",
        target=target,
        content=content,
    )


def loop() -> bytes:
    """Never end."""
    return guest("(loop $again (br $again))")


def sleep(seconds: int, *, until: bool = False) -> bytes:
    """Wait in a host call, where neither fuel nor an epoch counts: so long, or until a moment of the clock."""
    return guest(
        f"""(i64.store (i32.const 2048) (i64.const 0)) (i32.store8 (i32.const 2056) (i32.const 0))
        (i32.store (i32.const 2064) (i32.const 1)) (i64.store (i32.const 2072) (i64.const {seconds}000000000))
        (i32.store8 (i32.const 2088) (i32.const {int(until)}))
        (call $check (call $poll (i32.const 2048) (i32.const 4096) (i32.const 1) (i32.const 8)))"""
    )


def grow(pages: int) -> bytes:
    """Ask for memory; exit 9 if it is refused."""
    return guest(f"(if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then (call $exit (i32.const 9))))")


def flood(fd: str, *, target: str = "flood") -> bytes:
    """Write pages to stdout (`1`) or to a file without end; exit with the error that stops it."""
    opening = "(call $open (i32.const 3) $target $target_length (i32.const 1))" if fd == "file" else ""
    where = "(i32.load (i32.const 16))" if fd == "file" else f"(i32.const {fd})"
    return guest(
        f"{opening} (loop $again (call $write {where} (i32.const 1024) (i32.const 65536)) (br $again))", target=target
    )


def link(target: str, name: str) -> bytes:
    """Leave a symbolic link behind."""
    return guest("(call $check (call $symlink $target $target_length (i32.const 3) $name $name_length))",
                 target=target, name=name)  # fmt: skip


def unlink(name: str) -> bytes:
    """Remove a file."""
    return guest("(call $check (call $unlink (i32.const 3) $name $name_length))", name=name)


def clocks(name: str) -> bytes:
    """Exit 1 if the clock, 2 if a file's time is not zero, 0 if no time is to be seen."""
    return guest(
        """(call $check (call $clock (i32.const 0) (i64.const 0) (i32.const 2048)))
        (if (i64.ne (i64.load (i32.const 2048)) (i64.const 0)) (then (call $exit (i32.const 1))))
        (call $open (i32.const 3) $name $name_length (i32.const 1))
        (call $write (i32.load (i32.const 16)) $name $name_length)
        (call $check (call $filestat (i32.load (i32.const 16)) (i32.const 2048)))
        (if (i64.ne (i64.load (i32.const 2096)) (i64.const 0)) (then (call $exit (i32.const 2))))""",
        name=name,
    )
