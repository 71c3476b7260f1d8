;; export, multi-value: swap leaves two results on the stack, which subtraction takes as operands.
;; GET /reverse_sub/reverseSub?a=3&b=10 answers 7; /reverse_sub/swap?a=3&b=10 answers [10,3].
(module
  (func $swap (export "swap") (param $a i32) (param $b i32) (result i32 i32)
    local.get $b
    local.get $a)
  (func (export "reverseSub") (param $a i32) (param $b i32) (result i32)
    local.get $a
    local.get $b
    call $swap
    i32.sub))
