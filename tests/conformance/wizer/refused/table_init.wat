;; wizer: unsupported `table.init` instruction
;; edged: table-mutated
(module
  (table 2 funcref) (func $f) (elem $e func $f)
  (func (export "wizer-initialize")
    (table.init $e (i32.const 1) (i32.const 0) (i32.const 1))))
