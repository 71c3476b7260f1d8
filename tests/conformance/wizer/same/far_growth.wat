;; Grown to nearly 4 GiB and written at the very end.
;; calls: end() size()
;; state: no
(module
  (memory 0)
  (func (export "wizer-initialize")
    (drop (memory.grow (i32.const 65535)))
    (i32.store (i32.const 0xfffefffc) (i32.const 0x04030201)))
  (func (export "end") (result i32) (i32.load (i32.const 0xfffefffc)))
  (func (export "size") (result i32) (memory.size)))
