# SPDX-License-Identifier: MIT
"""The WebAssembly engine, inside a worker: compile a module, or run a compiled one under WASI preview 1.

Fuel and memory are limited here; wall time, disk and everything else by the jail, from outside. Results are the same
on every machine: NaNs are canonical, no threads, no relaxed SIMD, and no clock unless the policy gives one.
"""

from __future__ import annotations

from typing import Any

import wasmtime

from .task import Ending, Report, Run

WASI = "wasi_snapshot_preview1"
MAGIC = b"\0asm"
MAX_STACK = 1 << 20  # bytes of WebAssembly stack; C guests keep their own in linear memory
TABLE_ELEMENTS = 1 << 20
NO_CLOCK_RESOLUTION = 1_000_000_000  # ns; told by a clock that stands still

# A guest's own memory under the name that WASI looks for, so that the original functions can be called for it.
_SHIM = """(module
 (import "wasi" "fd_filestat_get" (func $fd (param i32 i32) (result i32)))
 (import "wasi" "path_filestat_get" (func $path (param i32 i32 i32 i32 i32) (result i32)))
 (import "wasi" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
 (import "guest" "memory" (memory 0))
 (export "memory" (memory 0))
 (func (export "fd_filestat_get") (param i32 i32) (result i32)
  (call $fd (local.get 0) (local.get 1)))
 (func (export "path_filestat_get") (param i32 i32 i32 i32 i32) (result i32)
  (call $path (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4)))
 (func (export "poll_oneoff") (param i32 i32 i32 i32) (result i32)
  (call $poll (local.get 0) (local.get 1) (local.get 2) (local.get 3))))"""
_FILESTAT_TIMES = 40  # offset of atim, mtim, ctim in a filestat (WASI preview 1: 64 bytes)
_SUBSCRIPTION = 48  # bytes of a subscription: its tag at 8 is 0 for a clock, whose flags at 40 are 1 for a moment
_MAX_SUBSCRIPTIONS = 1024
_FAULT, _INVALID, _NOT_SUPPORTED = 21, 28, 58  # errno of WASI preview 1


def make_engine() -> wasmtime.Engine:
    """Return an engine; the same settings compile a module and run it."""
    config = wasmtime.Config()
    config.consume_fuel = True
    config.cranelift_nan_canonicalization = True
    config.parallel_compilation = False
    config.wasm_threads = False
    config.wasm_relaxed_simd = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_component_model = False
    config.max_wasm_stack = MAX_STACK
    return wasmtime.Engine(config)


def compile_module(source: bytes) -> tuple[Report, bytes]:
    """Return a report and the compiled form of a module, empty where it is none."""
    if not source.startswith(MAGIC):  # the library would take text as well
        return Report(None, Ending.MODULE, 0), b""
    try:
        module = wasmtime.Module(make_engine(), source)
        return Report(0, None, 0), bytes(module.serialize())
    except wasmtime.WasmtimeError:
        return Report(None, Ending.MODULE, 0), b""


def run_module(compiled: bytes, run: Run) -> Report:
    """Run `_start` to its end."""
    engine = make_engine()
    module = wasmtime.Module.deserialize(engine, compiled)
    store = wasmtime.Store(engine)
    store.set_fuel(run.fuel)
    store.set_limits(memory_size=run.memory_bytes, table_elements=TABLE_ELEMENTS, instances=2, tables=4, memories=1)
    store.set_wasi(_wasi(run))
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    if not run.clock:
        _stop_clock(engine, linker, store)
    try:
        instance = linker.instantiate(store, module)
        start = instance.exports(store)["_start"]
    except (wasmtime.WasmtimeError, wasmtime.Trap, KeyError):
        return Report(None, Ending.LINK, run.fuel - store.get_fuel())
    if not isinstance(start, wasmtime.Func):
        return Report(None, Ending.LINK, run.fuel - store.get_fuel())
    code: int | None = None
    trap: str | None = None
    try:
        start(store)
        code = 0
    except wasmtime.ExitTrap as ended:
        code = ended.code
    except wasmtime.Trap as ended:
        trap = _name(ended)
    except wasmtime.WasmtimeError:
        trap = Ending.ENGINE
    return Report(code, trap, run.fuel - store.get_fuel())


def _name(trap: wasmtime.Trap) -> str:
    code = trap.trap_code
    if code is None:
        return Ending.ENGINE
    return str(code.name).lower().replace("_", "-")


def _wasi(run: Run) -> wasmtime.WasiConfig:
    wasi = wasmtime.WasiConfig()
    wasi.argv = list(run.args)
    wasi.env = list(run.env)
    wasi.stdout_file = run.stdout
    wasi.stderr_file = run.stderr
    for preopen in run.preopens:
        wasi.preopen_dir(preopen.host, preopen.guest, preopen.mutable)
    return wasi


def _stop_clock(engine: wasmtime.Engine, linker: wasmtime.Linker, store: wasmtime.Store) -> None:
    """Let the guest see a clock that stands at zero, in the times of files too.

    It may wait for a while, but for no moment: whether that has passed would tell the time.
    """
    i32, i64 = wasmtime.ValType.i32(), wasmtime.ValType.i64()
    names = ("fd_filestat_get", "path_filestat_get", "poll_oneoff")
    originals: dict[str, Any] = {name: linker.get(store, WASI, name) for name in names}
    shim = wasmtime.Module(engine, wasmtime.wat2wasm(_SHIM))
    instances: list[wasmtime.Instance] = []

    def clock_time_get(caller: wasmtime.Caller, _clock: int, _precision: int, result: int) -> int:
        return _write(caller, bytes(8), result)

    def clock_res_get(caller: wasmtime.Caller, _clock: int, result: int) -> int:
        return _write(caller, NO_CLOCK_RESOLUTION.to_bytes(8, "little"), result)

    def original(caller: wasmtime.Caller, name: str, *arguments: int) -> int:
        memory = caller.get("memory")
        if not isinstance(memory, wasmtime.Memory):
            return _FAULT
        if not instances:
            instances.append(wasmtime.Instance(caller, shim, [*originals.values(), memory]))
        error: int = instances[0].exports(caller)[name](caller, *arguments)
        return error

    def without_times(name: str) -> Any:
        def filestat_get(caller: wasmtime.Caller, *arguments: int) -> int:
            error = original(caller, name, *arguments)
            return error or _write(caller, bytes(24), (arguments[-1] & 0xFFFFFFFF) + _FILESTAT_TIMES)

        return filestat_get

    def poll_oneoff(caller: wasmtime.Caller, subscriptions: int, events: int, count: int, result: int) -> int:
        if not 0 < count <= _MAX_SUBSCRIPTIONS:
            return _INVALID
        asked = _read(caller, subscriptions, count * _SUBSCRIPTION)
        if asked is None:
            return _FAULT
        for start in range(0, len(asked), _SUBSCRIPTION):
            if asked[start + 8] == 0 and asked[start + 40] & 1:
                return _NOT_SUPPORTED
        return original(caller, "poll_oneoff", subscriptions, events, count, result)

    linker.allow_shadowing = True
    one = [i32]
    linker.define_func(
        WASI, "clock_time_get", wasmtime.FuncType([i32, i64, i32], one), clock_time_get, access_caller=True
    )
    linker.define_func(WASI, "clock_res_get", wasmtime.FuncType([i32, i32], one), clock_res_get, access_caller=True)
    for name, count in (("fd_filestat_get", 2), ("path_filestat_get", 5)):
        kind = wasmtime.FuncType([i32] * count, one)
        linker.define_func(WASI, name, kind, without_times(name), access_caller=True)
    linker.define_func(WASI, "poll_oneoff", wasmtime.FuncType([i32] * 4, one), poll_oneoff, access_caller=True)


def _read(caller: wasmtime.Caller, address: int, size: int) -> bytes | None:
    memory = caller.get("memory")
    start = address & 0xFFFFFFFF  # i32 arrives signed
    if not isinstance(memory, wasmtime.Memory) or start + size > memory.data_len(caller):
        return None
    return bytes(memory.read(caller, start, start + size))


def _write(caller: wasmtime.Caller, data: bytes, address: int) -> int:
    memory = caller.get("memory")
    start = address & 0xFFFFFFFF  # i32 arrives signed
    if not isinstance(memory, wasmtime.Memory) or start + len(data) > memory.data_len(caller):
        return _FAULT
    memory.write(caller, data, start)
    return 0
