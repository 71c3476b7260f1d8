;; A memory addressed with 64 bits, beside one with 32.
;; calls: get(65540) get(8) grow() size()
(module
  (memory $wide i64 1 10)
  (memory $narrow 1)
  (data (memory $wide) (i64.const 8) "\01\02\03\04\05\06\07\08")
  (func (export "wizer-initialize")
    (drop (memory.grow $wide (i64.const 1)))
    (i64.store $wide (i64.const 65540) (i64.const 0x1122334455667788))
    (memory.fill $narrow (i32.const 7) (i32.const 9) (i32.const 100)))
  (func (export "get") (param i32) (result i64) (i64.load $wide (i64.extend_i32_u (local.get 0))))
  (func (export "grow") (result i64) (memory.grow $wide (i64.const 3)))
  (func (export "size") (result i64) (memory.size $wide)))
