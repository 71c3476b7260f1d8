;; wizer: unsupported `table.fill` instruction
;; edged: table-mutated
(module
  (table 2 funcref) (func $f) (elem (i32.const 0) $f $f)
  (func (export "wizer-initialize")
    (table.fill (i32.const 1) (ref.null func) (i32.const 1))))
