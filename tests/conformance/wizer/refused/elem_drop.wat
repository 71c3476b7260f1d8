;; wizer: unsupported `elem.drop` instruction
;; edged: ok
;; calls: use(0) use(1)
(module
  (table 2 funcref) (func $f) (elem $e func $f)
  (func (export "wizer-initialize") (elem.drop $e))
  (func (export "use") (param i32)
    (table.init $e (i32.const 1) (i32.const 0) (local.get 0))))
