# Sourced. code_modules RATIO [BITS]: colors and modules of a block that holds RATIO tokens of BITS each: 8 colors in the largest modules, down to
# 4 pixels, then 16, and 8 of 2 pixels where even those are too few.
code_modules() {
  local bits=$((${2:-9} * $1)) try colors color_bits module
  for try in "8 3 14" "8 3 7" "8 3 4" "16 4 4" "8 3 2"; do
    read -r colors color_bits module <<<"$try"
    if [ "$bits" -le $((color_bits * (28 / module) ** 2)) ]; then break; fi
  done
  echo "colors: $colors, module: $module"
}
# The largest module, in pixels, with which a QR symbol of 41 modules takes no more blocks than LENGTH tokens at RATIO to a block.
largest_qr_module() {
  local module=1
  while [ $((((41 * (module + 1) + 27) / 28) ** 2 * $1)) -le "$2" ]; do module=$((module + 1)); done
  echo "$module"
}
