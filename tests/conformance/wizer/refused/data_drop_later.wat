;; wizer: unsupported `data.drop` instruction
;; edged: ok
;; calls: use() drop() use()
(module
  (memory 1)
  (data $d "later")
  (func (export "wizer-initialize") (i32.store (i32.const 0) (i32.const 5)))
  (func (export "drop") (data.drop $d))
  (func (export "use") (memory.init $d (i32.const 32) (i32.const 0) (i32.const 1))))
