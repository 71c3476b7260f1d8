;; Changed before any initialiser is called.
;; wizer: unsupported `table.set` instruction
;; edged: table-mutated
(module
  (table 2 funcref) (func $f) (elem declare func $f) (start $s)
  (func $s (table.set (i32.const 0) (ref.func $f)))
  (func (export "wizer-initialize")))
