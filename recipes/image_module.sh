# The largest modules, in pixels, of which a block holds enough for RATIO tokens: one of 9 bits takes three of 8 colors. Sourced.
largest_module() {
  local module=14 smaller
  for smaller in 7 4 2; do if [ $((3 * $1)) -gt $(((28 / module) ** 2)) ]; then module=$smaller; fi; done
  echo "$module"
}
