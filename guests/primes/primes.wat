;; How many primes there are below a number, up to 4 million: /primes/below?n=1000000
;;
;; `wizer.initialize` sieves: bit i is set if 2i + 1 is not prime. A call only counts bits.
(module
  (memory (export "memory") 4)
  (global $bits i32 (i32.const 2000000))

  (func $is_set (param $bit i32) (result i32)
    (i32.and
      (i32.load8_u (i32.shr_u (local.get $bit) (i32.const 3)))
      (i32.shl (i32.const 1) (i32.and (local.get $bit) (i32.const 7)))))
  (func $set (param $bit i32)
    (local $at i32)
    (local.set $at (i32.shr_u (local.get $bit) (i32.const 3)))
    (i32.store8 (local.get $at)
      (i32.or
        (i32.load8_u (local.get $at))
        (i32.shl (i32.const 1) (i32.and (local.get $bit) (i32.const 7))))))

  (func (export "wizer.initialize")
    (local $bit i32) (local $step i32) (local $multiple i32)
    (call $set (i32.const 0)) ;; 1 is no prime
    (local.set $bit (i32.const 1))
    (loop $next
      (if (i32.eqz (call $is_set (local.get $bit))) (then
        ;; p = 2 bit + 1; p² is bit 2 bit (bit + 1), and p bits lie between odd multiples
        (local.set $step (i32.add (i32.shl (local.get $bit) (i32.const 1)) (i32.const 1)))
        (local.set $multiple
          (i32.shl
            (i32.mul (local.get $bit) (i32.add (local.get $bit) (i32.const 1)))
            (i32.const 1)))
        (loop $strike
          (if (i32.lt_u (local.get $multiple) (global.get $bits)) (then
            (call $set (local.get $multiple))
            (local.set $multiple (i32.add (local.get $multiple) (local.get $step)))
            (br $strike))))))
      (local.set $bit (i32.add (local.get $bit) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $bit) (i32.const 1000))))) ;; 2001² > 4 million

  (func (export "below") (param $n i32) (result i32)
    (local $bit i32) (local $end i32) (local $count i32)
    (if (i32.le_u (local.get $n) (i32.const 2)) (then (return (i32.const 0))))
    (local.set $end (i32.shr_u (local.get $n) (i32.const 1)))
    (if (i32.gt_u (local.get $end) (global.get $bits)) (then (unreachable)))
    (local.set $count (i32.const 1)) ;; 2
    (loop $next
      (local.set $count
        (i32.add (local.get $count) (i32.eqz (call $is_set (local.get $bit)))))
      (local.set $bit (i32.add (local.get $bit) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $bit) (local.get $end))))
    (local.get $count)))
