;; wizer: unsupported `data.drop` instruction
;; edged: ok
;; calls: kept(3) dropped(0) dropped(1) other(1)
(module
  (memory 1)
  (data $d "dropped") (data $k "kept") (data $a (i32.const 5) "active")
  (func (export "wizer-initialize")
    (memory.init $d (i32.const 0) (i32.const 0) (i32.const 7)) (data.drop $d) (data.drop $a))
  (func (export "kept") (param i32) (result i32)
    (memory.init $k (i32.const 16) (i32.const 0) (local.get 0)) (i32.load (i32.const 16)))
  (func (export "dropped") (param i32)
    (memory.init $d (i32.const 32) (i32.const 0) (local.get 0)))
  (func (export "other") (param i32)
    (memory.init $a (i32.const 32) (i32.const 0) (local.get 0))))
