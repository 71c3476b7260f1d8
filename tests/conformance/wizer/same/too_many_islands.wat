;; 150,000 islands: more than the 100,000 segments that a module may have.
;; calls: get(48) get(47) get(4800000)
(module
  (memory 128)
  (func (export "wizer-initialize") (local $at i32)
    (loop $again
      (i32.store8 (local.get $at) (i32.const 7))
      (local.set $at (i32.add (local.get $at) (i32.const 48)))
      (br_if $again (i32.lt_u (local.get $at) (i32.const 7200000)))))
  (func (export "get") (param i32) (result i32) (i32.load8_u (local.get 0))))
