;; export: GET /add_numbers/add_numbers?num1=5&num2=10 answers 15.
(module
  (func (export "add_numbers") (param $num1 i32) (param $num2 i32) (result i32)
    local.get $num1
    local.get $num2
    i32.add))
