# Word statistics of the request's body; the value of this file is what answers.
class Handler
  GREETING = "words %d, distinct %d, longest %s\n"

  def initialize
    @asked = 0
  end

  def call
    answer($stdin.read.to_s)
    $stdout.flush
  end

  def answer(text)
    @asked += 1
    words = text.downcase.scan(/[[:alpha:]']+/)
    counts = words.tally.sort_by { |word, count| [-count, word] }
    longest = words.max_by(&:size) || ""
    $stdout.write(format(GREETING, words.size, counts.size, longest))
    counts.first(3).each { |word, count| $stdout.write("#{count} #{word}\n") }
    $stdout.write("asked #{@asked} times\n")
  end
end

Handler.new
