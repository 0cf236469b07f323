#!/bin/sh
# The whole loop on a folder of images and label PNGs: train a segmenter, predict train and val, cut patches from its
# predictions, train a refiner on them, refine val, and measure before and after. Started again, it goes on where it was.
#
#   DATA=camvid OUT=runs/loop sh examples/loop.sh
#
# DATA holds {train,val}/{images,labels}. More settings: CLASSES, CONFIG, ARCH, HEAD, SEGMENTER_SET, REFINER_SET (each a
# list of KEY=VALUE for --set), PATCHES (more arguments of bpr-train patches).
set -eu

DATA=${DATA:-../shared/data/camvid}
OUT=${OUT:-runs/loop}
CLASSES=${CLASSES:-11}
CONFIG=${CONFIG:-refiner_training/configs/segmenter/camvid.yaml}
ARCH=${ARCH:-deeplabv3plus}
HEAD=${HEAD:-plain}
BIN=${BIN:-}

settings() { for pair in "$@"; do printf -- '--set %s ' "$pair"; done; }

echo "1. a segmenter: $ARCH, $HEAD"
# shellcheck disable=SC2046,SC2086
"${BIN}bpr-train" segmenter "$CONFIG" --arch "$ARCH" --head "$HEAD" --out "$OUT/segmenter" $(settings \
  "data.train_images=$DATA/train/images" "data.train_labels=$DATA/train/labels" \
  "data.val_images=$DATA/val/images" "data.val_labels=$DATA/val/labels" "data.num_classes=$CLASSES" \
  ${SEGMENTER_SET:-})

echo "2. its predictions"
for split in train val; do
  "${BIN}bpr-train" predict "$OUT/segmenter/last.ckpt" "$DATA/$split/images" --format labels --out "$OUT/coarse/$split"
done

echo "3. patches along the boundaries it predicted"
# shellcheck disable=SC2086
"${BIN}bpr-train" patches --format labels --images "$DATA/train/images" --truth "$DATA/train/labels" \
  --predictions "$OUT/coarse/train" --out "$OUT/patches" ${PATCHES:-}

echo "4. a refiner"
# shellcheck disable=SC2046,SC2086
"${BIN}bpr-train" refiner examples/loop.yaml --out "$OUT/refiner" \
  $(settings "data.patches=$OUT/patches" ${REFINER_SET:-})

echo "5. refine val"
"${BIN}bpr" batch semantic --images "$DATA/val/images" --predictions "$OUT/coarse/val" --out "$OUT/refined" \
  --model "$OUT/refiner/model" --resume

echo "6. before and after"
"${BIN}bpr-train" evaluate semantic --labels "$DATA/val/labels" --predictions "$OUT/refined" \
  --before "$OUT/coarse/val" --classes "$CLASSES" --json | tee "$OUT/figures.json"
