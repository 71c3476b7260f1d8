;; Growth up to the maximum, and an attempt beyond it.
;; calls: said() size() grow()
(module
  (memory (export "m") 1 3)
  (global $said (mut i32) (i32.const 0))
  (func (export "wizer-initialize")
    (drop (memory.grow (i32.const 2)))
    (global.set $said (memory.grow (i32.const 1))))
  (func (export "said") (result i32) (global.get $said))
  (func (export "size") (result i32) (memory.size))
  (func (export "grow") (result i32) (memory.grow (i32.const 1))))
