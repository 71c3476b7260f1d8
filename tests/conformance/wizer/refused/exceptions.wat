;; Exceptions thrown and caught, before and after.
;; wizer: exceptions
;; edged: ok
;; calls: thrown(4) thrown(0)
(module
  (tag $t (param i32))
  (memory 1)
  (func $catch (param i32) (result i32)
    (block $caught (result i32)
      (try_table (result i32) (catch $t $caught) (throw $t (local.get 0)))))
  (func (export "wizer-initialize") (i32.store (i32.const 0) (call $catch (i32.const 30))))
  (func (export "thrown") (param i32) (result i32)
    (i32.add (i32.load (i32.const 0)) (call $catch (local.get 0)))))
