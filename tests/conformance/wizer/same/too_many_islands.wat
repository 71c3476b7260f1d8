;; 60,000 islands: more than the 50,000 segments that edged writes.
;; calls: get(48) get(47) get(2304000)
(module
  (memory 128)
  (func (export "wizer-initialize") (local $at i32)
    (loop $again
      (i32.store8 (local.get $at) (i32.const 7))
      (local.set $at (i32.add (local.get $at) (i32.const 48)))
      (br_if $again (i32.lt_u (local.get $at) (i32.const 2880000)))))
  (func (export "get") (param i32) (result i32) (i32.load8_u (local.get 0))))
