;; Prints during the initialiser and afterwards; only the latter is the snapshot's.
;; calls: _start() greet()
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "hello\n")
  (func $say (param i32 i32)
    (i32.store (i32.const 0) (local.get 0))
    (i32.store (i32.const 4) (local.get 1))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "wizer-initialize")
    (call $say (i32.const 100) (i32.const 6))
    (i32.store8 (i32.const 100) (i32.const 74)))
  (func (export "greet") (call $say (i32.const 100) (i32.const 6)))
  (func (export "_start")
    (call $say (i32.const 100) (i32.const 5))
    (call $exit (i32.const 3))))
