/**
 * Words for names: short, friendly in every pairing, no two that sound alike. A test runs over all pairs and checks
 * each against what no name may contain.
 */
export const ADJECTIVES = `
amber ample azure balmy bold brave breezy brief bright brisk broad bronze calm candid casual cheery chief chilly civil
clean clear clever cloudy coastal copper coral cosmic cosy crisp curious daily dapper daring dawn deep deft direct
dusty eager early earnest easy elder elegant even fair famous fancy fast fine fleet fluent fond free fresh frosty gentle
gilded glad golden grand great green happy hardy hazel hearty honest humble ideal indigo ivory jade jolly jovial keen kind
large lasting lively loyal lucid lucky lunar mellow merry mighty mild misty modern modest narrow neat nifty nimble noble
novel olive open orderly patient perky placid plain polar polite prime proper proud pure quick quiet rapid ready regal
rosy round royal ruby rugged rustic sandy scarlet serene sharp shiny silent silver simple sincere sleek smart smooth
snowy solar solid spry stable starry steady stout sunny sure swift tall tame teal tender tranquil true
trusty upbeat urban valid velvet vivid warm wise witty worthy young zesty
`
  .trim()
  .split(/\s+/)

export const NOUNS = `
acorn anchor apple arbor aspen atlas badger bamboo basin bay beacon bear beech birch bison bluff boulder bramble bridge brook cabin canoe canyon cape castle cedar cliff clover comet condor cove crane creek crow
dahlia dale deer delta dolphin dove dune eagle elk elm ember falcon fern field finch fjord flint forest fox galaxy
garden gecko glacier goose gull harbor hare harvest haven hawk heath heron hill hollow horizon ibis ivy jasmine jetty juniper kayak kiwi lagoon lake lantern lark laurel ledge lemur lichen lily linden lodge lotus lynx
magpie maple marlin marsh meadow meteor mill moose moss moth nebula nutmeg oak oasis ocean opal orbit orca orchid osprey
otter owl palm panda pebble pelican pepper pier pine planet plover plum pond poplar prairie puffin quail quarry quartz
rabbit raven reef ridge river robin rook saffron sail salmon shore sparrow spruce stone stork stream
summit swan thistle thrush tiger trail tulip tundra valley violet walnut walrus willow wren yarrow zephyr
`
  .trim()
  .split(/\s+/)
